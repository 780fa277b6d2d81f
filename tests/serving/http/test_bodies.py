"""What a body says, in the settings of a completion."""

from __future__ import annotations

from softprompt.serving.engine import (
    Writing,
)
from softprompt.serving.http import bodies


def test_what_a_body_says_reaches_the_writing() -> None:
    asked = {"model": "m", "prompt": "x"}
    body = bodies.CompletionBody(**asked)
    assert body.writing(body.max_tokens) == Writing(16, 1.0, 1.0, (), None)  # OpenAI's defaults
    neutral = bodies.CompletionBody(**asked, temperature=None, top_p=None, stop=None, max_tokens=None)
    assert neutral.writing(neutral.max_tokens) == Writing(None, 1.0, 1.0, (), None)
    own = bodies.CompletionBody(**asked, temperature=0.5, top_p=0.9, stop="a", seed=7)
    assert own.writing(3) == Writing(3, 0.5, 0.9, ("a",), 7)
    assert bodies.CompletionBody(**asked, stop=["a", "b"]).writing(3).stop == ("a", "b")
    said = bodies.Message(role="developer", content="x").plain()
    assert said == {"role": "system", "content": "x"}  # templates know no developer
