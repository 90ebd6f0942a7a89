"""The HTTP application. Floor 4.

Errors are JSON, `{"error": {"code", "message"}}`, with the codes of the protocol.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from attrs import frozen
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from relay.admission import NOT_IN_URL, TOKEN_PARAMETERS
from relay.protocol.messages import ErrorCode
from relay.web.api import Api, Refusal
from relay.web.assets import load_assets

log = structlog.get_logger()

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@frozen
class Reports:
    """What the relay says about itself."""

    ready: Callable[[], Awaitable[dict[str, Any]]]
    """`{"ready": bool, …}` with the reasons."""
    stats: Callable[[], dict[str, Any]]
    metrics: Callable[[str], tuple[bytes, str]]
    """What Prometheus reads, and its content type, for an `Accept` header."""


def make_app(reports: Reports, api: Api) -> Starlette:
    """The application that answers plain HTTP requests."""

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        report = await reports.ready()
        return JSONResponse(report, 200 if report["ready"] else 503)

    async def stats(_: Request) -> Response:
        return JSONResponse(reports.stats())

    async def metrics(request: Request) -> Response:
        content, content_type = reports.metrics(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": content_type})

    async def refused(_: Request, problem: Exception) -> Response:
        assert isinstance(problem, HTTPException)
        code = problem.code if isinstance(problem, Refusal) else ErrorCode.INVALID_MESSAGE
        return _error(code, problem.detail, problem.status_code, problem.headers)

    async def failed(_: Request, problem: Exception) -> Response:
        log.error("request failed", exc_info=problem)
        return _error("INTERNAL_ERROR", "Something went wrong in the server", 500)

    app = Starlette(
        routes=[
            Route("/health", _guarded(health)),
            Route("/ready", _guarded(ready)),
            Route("/stats", _guarded(stats)),
            Route("/metrics", _guarded(metrics)),
            Route("/streams", _guarded(api.streams)),
            Route("/alerts", _guarded(api.alerts), methods=["GET"]),
            Route("/alerts", _guarded(api.raise_alert), methods=["POST"]),
            Route("/figures", _guarded(api.figures)),
            *(Route(path, _guarded(asset)) for path, asset in load_assets().items()),
        ],
        exception_handlers={HTTPException: refused, Exception: failed},
    )
    app.router.redirect_slashes = False  # a path is known or it is not
    return app


def _guarded(
    endpoint: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        if TOKEN_PARAMETERS & request.query_params.keys():
            raise HTTPException(400, NOT_IN_URL)
        response = await endpoint(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return guarded


def _error(code: str, message: str, status: int, headers: Any = None) -> JSONResponse:
    body = {"error": {"code": code, "message": message}}
    return JSONResponse(body, status, headers={**HEADERS, **(headers or {})})
