"""What answers plain HTTP requests is made with the first of them."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import structlog
import trio
from starlette.types import Message, Receive, Scope, Send

from relay.web import lazy
from relay.web.lazy import LazyWeb
from relay.web.setup import WebParts


class Web:
    """Makes an application that keeps what it is called with."""

    def __init__(self) -> None:
        self.made = 0
        self.calls: list[Scope] = []

    async def application(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls.append(scope)
        await send(await receive())

    def make(self) -> WebParts:
        self.made += 1
        return WebParts(self.application, None)


async def nothing() -> Message:
    return {"type": "http.request"}


async def test_first_requests_that_come_together_share_one_application() -> None:
    web = Web()
    shared, sent = LazyWeb(web.make), []

    async def send(message: Message) -> None:
        sent.append(message)

    scopes: list[dict[str, Any]] = [{"path": f"/{number}"} for number in range(3)]
    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(shared, scope, nothing, send)
    assert sorted(each["path"] for each in web.calls) == ["/0", "/1", "/2"]
    assert sent == [{"type": "http.request"}] * 3
    assert web.made == 1


async def test_a_client_that_has_left_leaves_it_for_the_next() -> None:
    web = Web()
    made = LazyWeb(web.make)

    async def send(_: Message) -> None: ...

    with trio.CancelScope() as scope:
        scope.cancel()
        await made({"path": "/left"}, nothing, send)
    assert scope.cancelled_caught
    assert web.calls == []
    await made({"path": "/next"}, nothing, send)
    assert [each["path"] for each in web.calls] == ["/next"]


async def test_a_client_that_leaves_while_it_is_loaded_leaves_it_to_those_who_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    web, begun, may_end = Web(), trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def load_slowly() -> None:
        token.run_sync_soon(begun.set)
        assert may_end.wait(10)

    async def send(_: Message) -> None: ...

    monkeypatch.setattr(lazy, "_import_web", load_slowly)
    made = LazyWeb(web.make)
    async with trio.open_nursery() as waiting, trio.open_nursery() as leaving:
        leaving.start_soon(made, {"path": "/left"}, nothing, send)
        await begun.wait()
        waiting.start_soon(made, {"path": "/waiting"}, nothing, send)
        leaving.cancel_scope.cancel()
        may_end.set()
    assert web.made == 1
    assert web.calls[-1] == {"path": "/waiting"}


async def test_what_keeps_it_from_being_made_is_logged_and_tried_again_with_the_next() -> None:
    web, faults = Web(), [OSError("too many open files")]

    def make() -> WebParts:
        if faults:
            raise faults.pop()
        return web.make()

    async def send(_: Message) -> None: ...

    made = LazyWeb(make)
    with structlog.testing.capture_logs() as logged, pytest.raises(OSError, match="too many"):
        await made({"path": "/first"}, nothing, send)
    assert [(each["event"], each["exc_info"]) for each in logged] == [("request failed", True)]
    await made({"path": "/next"}, nothing, send)
    assert [each["path"] for each in web.calls] == ["/next"]


def test_workers_have_it_before_the_first_request() -> None:
    web = Web()
    made = LazyWeb(web.make)
    assert made.parts is made.parts
    assert web.made == 1
