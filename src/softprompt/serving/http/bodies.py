"""What clients may send, and what each form is in the words of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..engine import Writing

Name = Annotated[str, Field(min_length=1, max_length=64, description="Name of a prompt, as /v1/models lists them.")]
Text = Annotated[str, Field(min_length=1)]
Stop = Text | Annotated[list[Text], Field(max_length=4)] | None
# settings of OpenAI's that clients send at the value that changes nothing; another one is refused
Nothing = Annotated[float, Field(ge=0, le=0)] | None
Empty = Annotated[dict[str, Any] | list[Any], Field(max_length=0)] | None


class PlainText(BaseModel):
    """What every answer is."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]


class Body(BaseModel):
    """A field that nobody reads would be a promise that nobody keeps."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    include_usage: bool = False


class Sampled(Body):
    """What completions and chat have in common."""

    model: Name
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    stop: Stop = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    n: Literal[1] | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: Nothing = 0
    presence_penalty: Nothing = 0
    logit_bias: Empty = None
    truncate: Annotated[bool, Field(description="Cut a text that is too long, as a prediction offline does.")] = False

    def writing(self, max_new_tokens: int | None) -> Writing:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        temperature = 1.0 if self.temperature is None else self.temperature
        return Writing(max_new_tokens, temperature, self.top_p or 1.0, tuple(stop), self.seed)


class CompletionBody(Sampled):
    prompt: Text | Annotated[list[Text], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    echo: Literal[False] | None = False
    best_of: Literal[1] | None = 1
    logprobs: None = None
    suffix: None = None


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatBody(Sampled):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = False
    tools: Empty = None
    response_format: PlainText | None = None

    @model_validator(mode="after")
    def _to_answer(self) -> ChatBody:
        if self.messages[-1].role == "assistant":
            raise ValueError("expected a message to answer at the end of messages, got the assistant's own")
        return self


class Row(Body):
    """One row: a text, two texts, or words."""

    text: Text | None = None
    text_pair: Text | None = None
    tokens: Annotated[list[Text], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Row:
        if self.tokens is not None and (self.text is not None or self.text_pair is not None):
            raise ValueError("text and tokens are two forms of one row")
        return self

    def columns(self) -> dict[str, Any]:
        return {name: value for name, value in self.model_dump().items() if value is not None}


class ClassifyBody(Body):
    model: Name
    input: Text | Row | Annotated[list[Text | Row], Field(min_length=1)]
    truncate: bool = False

    def rows(self) -> list[Mapping[str, Any]]:
        given = self.input if isinstance(self.input, list) else [self.input]
        return [{"text": one} if isinstance(one, str) else one.columns() for one in given]


Pair = Annotated[list[Text], Field(min_length=2, max_length=2)]
One = Annotated[list[Text], Field(min_length=1, max_length=1)]


class PredictBody(Body):
    """The form of text-embeddings-inference; ``model`` may be left out where one classifier is served."""

    inputs: Text | Annotated[list[Pair | One], Field(min_length=1)]
    model: Name | None = None
    truncate: bool = False
    raw_scores: Literal[False] = False

    def rows(self) -> list[Mapping[str, Any]]:
        given = [[self.inputs]] if isinstance(self.inputs, str) else self.inputs
        return [dict(zip(("text", "text_pair"), texts, strict=False)) for texts in given]


class PromptBody(Body):
    """A prompt to be served, from a folder of the operator's."""

    name: Name
    folder: Annotated[Name | None, Field(description="A folder of --prompts-dir; the name without it.")] = None
