"""The HTTP application.

Errors are JSON, `{"error": {"code", "message"}}`, with the codes of the protocol.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from relay.connection.admission import NOT_IN_URL, is_for_token
from relay.protocol.messages import ErrorCode
from relay.web.api import Api, ApiError, NoQuery, json_response, query_of
from relay.web.assets import load_assets
from relay.web.exposition import Exposition
from relay.web.machine import Machine, MachineSilent
from relay.web.operate import OperateApi
from relay.web.pictures.setup import Pictures
from relay.web.push import PushApi
from relay.web.reports import Reports

log = structlog.get_logger()

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(
    reports: Reports,
    exposition: Exposition,
    api: Api,
    operate: OperateApi,
    machine: Machine | None = None,
    *,
    pictures: Pictures | None = None,
    push: PushApi | None = None,
    frame_ancestors: Sequence[str] = (),
) -> Starlette:
    """The application that answers plain HTTP requests; a worker of a machine answers for it."""

    async def health(_: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(_: Request) -> Response:
        report = await (reports.ready() if machine is None else machine.ready())
        return json_response(report, 200 if report.ready else 503)

    async def stats(_: Request) -> Response:
        return json_response(reports.stats() if machine is None else await machine.stats())

    async def metrics(request: Request) -> Response:
        accept = request.headers.get("accept", "")
        content, content_type = (
            exposition.encode(accept) if machine is None else await machine.metrics(accept)
        )
        return Response(content, headers={"Content-Type": content_type})

    async def refused(request: Request, problem: Exception) -> Response:
        assert isinstance(problem, HTTPException)
        base_path: str = request.scope["root_path"]
        if base_path and request.scope["path"] == base_path:  # what the page names is beside it
            return RedirectResponse(f"{base_path}/", 308, HEADERS)
        code = problem.code if isinstance(problem, ApiError) else ErrorCode.INVALID_MESSAGE
        return _error(code, problem.detail, problem.status_code, problem.headers)

    async def silent(_: Request, __: Exception) -> Response:
        return _error("INTERNAL_ERROR", "The other workers of this relay do not answer", 503)

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
            *([] if pictures is None else _picture_routes(pictures)),
            *([] if push is None else _push_routes(push)),
            Route("/alerts", _guarded(api.alerts), methods=["GET"]),
            Route("/alerts", _guarded(_without_query(api.raise_alert)), methods=["POST"]),
            Route("/revocations", _guarded(_without_query(api.revocations)), methods=["POST"]),
            Route("/figures", _guarded(api.figures)),
            Route("/operate/streams", _guarded(operate.streams)),
            *(
                Route(f"/operate/{path}", _guarded(_without_query(endpoint)), methods=["POST"])
                for path, endpoint in (
                    ("people", operate.people),
                    ("streams/transfer", operate.transfer),
                    ("streams/free", operate.free),
                    ("users/end", operate.end_user),
                    ("connections/end", operate.end_connection),
                )
            ),
            *(Route(path, _guarded(asset)) for path, asset in load_assets(frame_ancestors).items()),
        ],
        exception_handlers={
            HTTPException: refused,
            MachineSilent: silent,
            Exception: failed,
        },
    )
    app.router.redirect_slashes = False  # `/health/` is not found
    return app


Endpoint = Callable[[Request], Awaitable[Response]]


def _picture_routes(pictures: Pictures) -> list[Route]:
    return [
        Route("/streams/{stream_id}/latest.jpg", _guarded(pictures.stills.latest)),
        Route("/streams/{stream_id}/live.mjpeg", _guarded(pictures.live.live)),
        *(
            ()
            if pictures.of_alerts is None
            else (
                Route("/alerts/{alert_id}/still.jpg", _guarded(pictures.of_alerts.still)),
                Route("/alerts/{alert_id}/clip.mjpeg", _guarded(pictures.of_alerts.clip)),
                Route("/alerts/{alert_id}/clip.mp4", _guarded(pictures.of_alerts.mp4)),
            )
        ),
        Route("/links", _guarded(pictures.links.listed), methods=["GET"]),
        Route("/links", _guarded(pictures.links.make), methods=["POST"]),
        Route("/links/{link_id}", _guarded(pictures.links.revoke), methods=["DELETE"]),
    ]


def _push_routes(push: PushApi) -> list[Route]:
    return [
        Route("/push", _guarded(push.listed), methods=["GET"]),
        Route("/push", _guarded(push.subscribe), methods=["POST"]),
        Route("/push/{target_id}", _guarded(push.unsubscribe), methods=["DELETE"]),
    ]


def _without_query(endpoint: Endpoint) -> Endpoint:
    """An endpoint of the API that has no parameters, and says so. What monitoring and browsers ask
    for ignores them."""

    async def checked(request: Request) -> Response:
        query_of(request, NoQuery)
        return await endpoint(request)

    return checked


def _guarded(endpoint: Endpoint) -> Endpoint:
    async def guarded(request: Request) -> Response:
        if any(map(is_for_token, request.query_params)):
            raise HTTPException(400, NOT_IN_URL)
        response = await endpoint(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return guarded


def _error(
    code: str, message: str, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    body = {"error": {"code": code, "message": message}}
    return json_response(body, status, {**HEADERS, **(headers or {})})
