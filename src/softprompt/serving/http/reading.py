"""Paths of prompts that read: vLLM's classify and the predict of text-embeddings-inference."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from ..._types import SoftPromptError
from .. import engine as core
from . import bodies, replies
from .door import REFUSALS, Door


def reading(door: Door) -> APIRouter:
    """The paths of classes and tags."""
    router = APIRouter()

    @router.post("/v1/classify", dependencies=[Depends(door.client)], responses=REFUSALS)
    async def classify(http: Request, body: bodies.ClassifyBody) -> JSONResponse:
        """Classify texts or pairs of them (or give their numbers), or tag words; in the form of vLLM's /classify."""
        served = door.find(body.model, "classification", "multilabel", "regression", "tokens")
        answers = await door.answered(
            http, [core.Request(body.model, row, truncate=body.truncate) for row in body.rows()]
        )
        return JSONResponse(replies.classes(body.model, served, answers), headers=replies.timing(answers))

    @router.post("/predict", dependencies=[Depends(door.client)], responses=REFUSALS)
    async def predict(http: Request, body: bodies.PredictBody) -> JSONResponse:
        """Classify texts, in the form of text-embeddings-inference."""
        name = body.model or _only_classifier(door.engine)
        door.find(name, "classification")
        answers = await door.answered(http, [core.Request(name, row, truncate=body.truncate) for row in body.rows()])
        made = [replies.ranked(answer) for answer in answers]
        return JSONResponse(made[0] if isinstance(body.inputs, str) else made, headers=replies.timing(answers))

    return router


def _only_classifier(engine: core.PromptEngine) -> str:
    names = sorted(name for name, one in list(engine.shelf.prompts.items()) if one.card.kind == "classification")
    if len(names) != 1:
        raise SoftPromptError(
            f"model: expected the name of a prompt where not exactly one classifies, got none; there are {', '.join(names) or 'none'}."
        )
    return names[0]
