"""HTTP for the exporter of traces, which no collector can hold up or fill.

The timeout of a socket begins anew with each byte, so a collector that sends one a second would
hold the thread that exports for days. Here a request has a deadline, at which its connection is
cut.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

from attrs import define, field
from requests import PreparedRequest, RequestException, Response, Session, Timeout
from requests.adapters import HTTPAdapter

DEFAULT_EXPORT_TIMEOUT = 10.0
"""Seconds for a request that comes without a timeout, as in the SDK."""


@define(eq=False)
class RequestDeadline:
    """Cuts what a request has opened once its time is up."""

    is_over: bool = False
    _lines: list[socket.socket] = field(factory=list)
    """Copies of the sockets, whose originals TLS takes over."""
    _lock: threading.Lock = field(factory=threading.Lock)

    @contextmanager
    def after(self, seconds: float) -> Iterator[None]:
        """Be over so many seconds after the block has begun, unless it has ended."""
        timer = threading.Timer(seconds, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:
                for each in self._lines:
                    each.close()
                self._lines.clear()

    def watch(self, opened: socket.socket) -> None:
        """Cut this connection, too; `Timeout` if it comes too late."""
        with self._lock:
            if self.is_over:
                raise Timeout
            self._lines.append(socket.fromfd(opened.fileno(), opened.family, opened.type))

    def _cut(self) -> None:
        with self._lock:
            self.is_over = True
            for each in self._lines:
                with suppress(OSError):  # the other end was faster
                    each.shutdown(socket.SHUT_RDWR)


_running = threading.local()
"""The deadline of the request that this thread sends."""


class _Timed:
    """A connection of urllib3 that ends at the deadline of the request it was opened for."""

    def _new_conn(self) -> socket.socket:
        opened: socket.socket = super()._new_conn()  # type: ignore[misc]
        try:
            _running.deadline.watch(opened)
        except Timeout:
            opened.close()
            raise
        return opened

    def _tunnel(self) -> None:
        super()._tunnel()  # type: ignore[misc]
        if _running.deadline.is_over:  # else a proxy's answer would end where it was cut
            raise Timeout


@cache
def _timed(kind: type) -> type:
    return kind if issubclass(kind, _Timed) else type(f"Timed{kind.__name__}", (_Timed, kind), {})


class BoundedAdapter(HTTPAdapter):
    """Sends each request on a connection of its own, within its timeout.

    Of an answer it reads the head alone, which is all that an exporter needs: the body may have no
    end. A redirect is an error, for the SDK would count it as a success.
    """

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
        pool.ConnectionCls = _timed(pool.ConnectionCls)
        return pool

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        asked = kwargs.get("timeout")
        seconds = float(asked) if isinstance(asked, int | float) else DEFAULT_EXPORT_TIMEOUT
        deadline = _running.deadline = RequestDeadline()
        try:
            with deadline.after(seconds):
                response = super().send(request, *args, **{**kwargs, "stream": True})
                response.close()
        except (RequestException, OSError):
            if deadline.is_over:
                raise Timeout from None
            raise
        if deadline.is_over:  # else the head would end where it was cut
            raise Timeout
        response._content = b""  # else it would be read, of a connection that is closed
        if 300 <= response.status_code < 400:
            raise RequestException("the collector is elsewhere")
        return response


def bounded_session() -> Session:
    """A session that sends by `BoundedAdapter` alone."""
    session = Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter())
    return session
