"""Requests to vLLM that carry the soft prompt in this folder. Needs torch and safetensors, not softprompt.

The server needs vllm>=0.26, started with --enable-prompt-embeds. Older ones decode tensors of requests unsafely: CVE-2025-62164 (0.10.2 to
0.11.0), CVE-2026-56340 (before 0.13), CVE-2026-73557 (before 0.26). Who may send tensors to a server can crash it: keep the endpoint to
your own programs.

    python vllm_requests.py MODEL            prints the body of a chat request, for a prompt at a marker
"""

import base64
import io
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).resolve().parent
PLACEHOLDER = (
    0  # the id that stands at virtual tokens; always the same one, because the server's cache of prefixes looks at it
)


def facts(folder=FOLDER):
    """What prompt.json says: backbone, num_virtual_tokens, hidden_size, marker_token_id."""
    return json.loads((Path(folder) / "prompt.json").read_text(encoding="utf-8"))


def rows(folder=FOLDER, with_marker=False):
    """The virtual tokens [P, H]; with the embedding of the marker behind them, where no token stands for it."""
    tensors = load_file(Path(folder) / "prompt.safetensors")
    made = [tensors["prompt_embeddings"]]
    if with_marker and "marker_embedding" in tensors:
        made.append(tensors["marker_embedding"])
    return torch.cat(made)


def whole_numbers(token_ids):
    """The ids of one text as a list."""
    ids = torch.as_tensor(token_ids)
    if ids.dim() != 1:
        raise ValueError(
            f"expected the token ids of one text [S], got {list(ids.shape)}; build a request for each text."
        )
    return ids.tolist()


def place(token_ids, folder=FOLDER):
    """Where the prompt stands among token ids: in front, or in front of the first marker."""
    marker = facts(folder)["marker_token_id"]
    if marker is None:
        return 0
    if marker not in token_ids:
        raise ValueError(f"expected the marker, token {marker}, among the token ids, got none; write it into the text.")
    return token_ids.index(marker)


def embeds_prompt(token_ids, folder=FOLDER):
    """The fields of vllm.inputs.EmbedsPrompt for LLM(model, enable_prompt_embeds=True).generate.

    Positions of token ids have rows of zeros, which the server does not read. The ids must be those that the backbone was trained
    with: special tokens such as a beginning of text are part of them.
    """
    ids = whole_numbers(token_ids)
    virtual, at = rows(folder), place(ids, folder)
    count = len(virtual)
    embeds = torch.zeros(count + len(ids), virtual.shape[1])
    embeds[at : at + count] = virtual
    return {
        "prompt_embeds": embeds,
        "prompt_token_ids": [*ids[:at], *[PLACEHOLDER] * count, *ids[at:]],
        "prompt_is_token_ids": [not at <= i < at + count for i in range(len(embeds))],
    }


def encoded(embeds):
    """A tensor as requests carry it: base64 of what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(embeds.contiguous(), buffer)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def completion(token_ids, embed, model, folder=FOLDER, **options):
    """A body for POST /v1/completions. The endpoint takes no ids beside embeddings, so ``embed`` looks the text's up: the backbone's
    embedding of ids [S] as [S, H], such as ``transformers_model.get_input_embeddings()``."""
    numbers = whole_numbers(token_ids)
    at, ids = place(numbers, folder), torch.tensor(numbers)
    with torch.no_grad():
        text = embed(ids).float().cpu()
    whole = torch.cat([text[:at], rows(folder), text[at:]])
    return {"model": model, "prompt_embeds": encoded(whole), **options}


def chat_part(folder=FOLDER):
    """A part of a message's content for POST /v1/chat/completions: put it where the text of training had the marker.

    The template is rendered around it, so a prompt that was trained in front of the whole text does not stand where it was trained.
    """
    if facts(folder)["marker_token_id"] is None:
        raise ValueError(
            "this prompt was trained in front of the text, and a chat puts it behind the template's beginning: use embeds_prompt or completion, or train it at a marker (marker_token_id)."
        )
    return {"type": "prompt_embeds", "data": encoded(rows(folder, with_marker=True))}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python vllm_requests.py MODEL")
    try:
        message = {"role": "system", "content": [chat_part()]}
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(json.dumps({"model": sys.argv[1], "messages": [message, {"role": "user", "content": "..."}]}))
