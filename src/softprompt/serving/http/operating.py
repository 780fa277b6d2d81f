"""Paths about the server itself: what is served, prompts that come and go, how it goes, and its page."""

from __future__ import annotations

import asyncio
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from . import bodies, replies
from .door import ADMIN, ERROR, Door
from .metrics import Metrics
from .service import folder_called

PAGE = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; script-src 'self'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def operating(door: Door) -> APIRouter:
    """The paths of models, administration, health, metrics and the page."""
    router = APIRouter()

    @router.get("/v1/models", dependencies=[Depends(door.client)], responses={401: ERROR})
    async def models() -> dict[str, Any]:
        """The prompts that are served."""
        served = [door.engine.shelf.prompts[name] for name in sorted(door.engine.shelf.prompts)]
        return {"object": "list", "data": [replies.model(one) for one in served]}

    @router.get(
        "/v1/models/{name}", dependencies=[Depends(door.client)], responses={401: ERROR, 404: ERROR, 400: ERROR}
    )
    async def one_model(name: str) -> dict[str, Any]:
        """One prompt."""
        return replies.model(door.engine.shelf.find(name))

    @router.post("/admin/prompts", status_code=201, dependencies=[Depends(door.admin)], responses=ADMIN)
    async def add(body: bodies.PromptBody) -> Any:
        """Serve a prompt from a folder of --prompts-dir."""
        folder = folder_called(door.service, body.folder or body.name)
        served = await asyncio.wrap_future(door.engine.add(body.name, folder))
        return replies.model(served)

    @router.delete("/admin/prompts/{name}", dependencies=[Depends(door.admin)], responses=ADMIN)
    async def remove(name: str) -> dict[str, Any]:
        """Serve a prompt no more; answered when its requests in flight are."""
        await asyncio.wrap_future(door.engine.remove(name))
        return {"id": name, "object": "model", "deleted": True}

    # ------------------------------------------------------------------ how it goes

    @router.get("/healthz", responses={503: ERROR})
    async def health() -> JSONResponse:
        """200 while requests are taken, 503 else."""
        state = {"status": "ok" if door.engine.is_open else "failed" if door.engine.failure else "closing"}
        return JSONResponse(state, 200 if door.engine.is_open else 503)

    @router.get(
        "/metrics", response_class=PlainTextResponse, dependencies=[Depends(door.client)], responses={401: ERROR}
    )
    async def metrics() -> PlainTextResponse:
        """Counters, for Prometheus."""
        kept = door.engine.watcher if isinstance(door.engine.watcher, Metrics) else Metrics()
        return PlainTextResponse(kept.text(door.engine), media_type="text/plain; version=0.0.4; charset=utf-8")

    for path, kind in (("", "html"), ("page.css", "css"), ("page.js", "javascript")):
        _serve_page(router, path, kind)
    return router


def _serve_page(router: APIRouter, path: str, kind: str) -> None:
    text = (files("softprompt.serving.http") / "page" / (path or "page.html")).read_text(encoding="utf-8")

    async def page() -> HTMLResponse:
        return HTMLResponse(text, media_type=f"text/{kind}; charset=utf-8", headers=PAGE)

    router.api_route(f"/{path}", methods=["GET", "HEAD"], include_in_schema=False)(page)
