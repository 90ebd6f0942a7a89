"""The HTTP client for servers that the settings name.

Certificates are checked against the system's, or those in SSL_CERT_FILE. A name's addresses are
tried with Happy Eyeballs, which is in `trio.open_tcp_stream`. It follows no redirects,
keeps no cookies, ignores the environment's proxies and `.netrc`, and reads no response beyond a
given size. The caller sets deadlines.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http.cookiejar import DefaultCookiePolicy

import httpx2
import structlog
import trio
from attrs import define, field, frozen

from relay.errors import StoreUnavailable

MAX_HTTP_CONNECTIONS = 32
"""Concurrent connections; further requests wait for one."""

MAX_OUTAGE_LINES, OUTAGE_WINDOW = 10, 60.0
"""Log lines about one server in so many seconds."""

log = structlog.get_logger()


class RequestFailed(StoreUnavailable):
    """A request got no usable response. The text says why, and quotes nothing of either."""


@frozen
class HttpResponse:
    """A response of any status."""

    status: int
    body: bytes
    removes_cookie: bool = False


@frozen
class HttpClient:
    """Sends requests. The settings allow plain HTTP to this machine only."""

    _client: httpx2.AsyncClient = field(repr=False)

    async def get(self, url: str, *, max_bytes: int) -> bytes:
        """The body of a 200 response; `RequestFailed` for anything else, or a larger body."""
        return await self._request("GET", url, {}, None, max_bytes)

    async def post_form(
        self, url: str, form: Mapping[str, str], *, authorization: str, max_bytes: int
    ) -> bytes:
        """Post a form with credentials in the Authorization header; otherwise like `get`."""
        return await self._request("POST", url, {"Authorization": authorization}, form, max_bytes)

    async def get_any(self, url: str, *, token: str | None = None, max_bytes: int) -> HttpResponse:
        """The response, whatever its status, with this bearer token; `RequestFailed` if there is
        none."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            async with self._client.stream("GET", url, headers=headers) as response:
                body = await _read(response, max_bytes)
                cookies = response.headers.get_list("Set-Cookie")
                return HttpResponse(response.status_code, body, any(map(_removes, cookies)))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RequestFailed(_why(error)) from None

    async def post(
        self, url: str, body: bytes, *, headers: Mapping[str, str], max_bytes: int
    ) -> HttpResponse:
        """Post a body; the response, whatever its status. `RequestFailed` if there is none. A user
        name and a password in the URL are sent as such."""
        try:
            async with self._client.stream(
                "POST", url, headers=dict(headers), content=body
            ) as response:
                return HttpResponse(response.status_code, await _read(response, max_bytes))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise RequestFailed(_why(error)) from None

    async def _request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None,
        max_bytes: int,
    ) -> bytes:
        try:
            async with self._client.stream(
                method, url, headers=dict(headers), data=form
            ) as response:
                if response.status_code != httpx2.codes.OK:
                    raise RequestFailed(f"status {response.status_code}")
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise RequestFailed("a compressed answer, which was not asked for")
                return await _read(response, max_bytes)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            # Not its text, which may quote the request.
            raise RequestFailed(type(error).__name__) from None


def _removes(cookie: str) -> bool:
    """Whether a Set-Cookie header removes its cookie (RFC 6265)."""
    attributes = [each.strip().lower() for each in cookie.split(";")[1:]]
    return "max-age=0" in attributes


def _why(error: BaseException) -> str:
    """The reason, in words that quote nothing of the request."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"there is no TLS with it: {cause.reason or type(cause).__name__}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx2.InvalidURL):
        return "its host name cannot be one"
    if isinstance(error, httpx2.ConnectError):
        return "nobody answers there"
    return f"the connection broke off ({type(error).__name__})"


async def _read(response: httpx2.Response, max_bytes: int) -> bytes:
    body = bytearray()
    with trio.CancelScope() as reading:
        async for part in response.aiter_raw():
            body += part
            if len(body) > max_bytes:
                # Not `break`: the inner generators would be left to the garbage collector.
                reading.cancel()
    if len(body) > max_bytes:
        raise RequestFailed(f"more than {max_bytes} bytes")
    return bytes(body)


@asynccontextmanager
async def open_http_client(tls: ssl.SSLContext | None = None) -> AsyncIterator[HttpClient]:
    """A client whose connections are closed with the block. `tls` says which certificates are
    trusted: those of the system, by default."""
    async with httpx2.AsyncClient(
        verify=tls or httpx2.create_ssl_context(),
        trust_env=False,
        follow_redirects=False,
        timeout=None,  # callers use cancel scopes
        limits=httpx2.Limits(max_connections=MAX_HTTP_CONNECTIONS),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    ) as client:
        client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        yield HttpClient(client)


@define(eq=False)
class OutageLog:
    """Logs when a server begins to fail and when it recovers, not every failure; nor every change,
    for strangers may bring about many: they choose what is asked."""

    _server: str
    _failure: str | None = None
    """As last logged."""
    _lines_left: int = MAX_OUTAGE_LINES
    _window_ends: float = float("-inf")
    """By Trio's clock."""

    def failed(self, why: str) -> None:
        if why != self._failure and self._may_log():
            self._failure = why
            log.warning("another server gives no answer", server=self._server, why=why)

    def succeeded(self) -> None:
        if self._failure is not None and self._may_log():
            self._failure = None
            log.info("another server answers again", server=self._server)

    def _may_log(self) -> bool:
        now = trio.current_time()
        if now >= self._window_ends:
            self._window_ends, self._lines_left = now + OUTAGE_WINDOW, MAX_OUTAGE_LINES
        self._lines_left -= 1
        return self._lines_left >= 0
