"""What relay asks of other servers over HTTPS. Floor 1, and the only place that knows httpx2.

Certificates are checked against the system's, or those in SSL_CERT_FILE. Redirects are not
followed, cookies not kept, proxies and `.netrc` of the environment not used, and no answer is read
beyond a bound. A deadline is the caller's.
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

CONNECTIONS = 32
"""At once; who else asks waits for one."""

log = structlog.get_logger()


class Unanswered(StoreUnavailable):
    """Another server gave no answer that can be used; the text says why, and quotes nothing."""


@frozen
class Answer:
    """What another server said, whatever it was."""

    status: int
    body: bytes


@frozen
class Outbound:
    """Asks over HTTPS; plain HTTP only where the settings allow it, which is on this machine."""

    _client: httpx2.AsyncClient = field(repr=False)

    async def get(self, url: str, *, most: int) -> bytes:
        """The body of a 200 of at most so many bytes; anything else is `Unanswered`."""
        return await self._ask("GET", url, {}, None, most)

    async def post_form(
        self, url: str, form: Mapping[str, str], *, authorization: str, most: int
    ) -> bytes:
        """As `get`, with the credentials in the one header that is made for them."""
        return await self._ask("POST", url, {"Authorization": authorization}, form, most)

    async def look(self, url: str, *, token: str | None = None, most: int) -> Answer:
        """Whatever is answered there, to whoever bears this token; or else `Unanswered`."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            async with self._client.stream("GET", url, headers=headers) as response:
                return Answer(response.status_code, await _read(response, most))
        except httpx2.HTTPError as error:
            raise Unanswered(_why(error)) from None

    async def _ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None,
        most: int,
    ) -> bytes:
        try:
            async with self._client.stream(
                method, url, headers=dict(headers), data=form
            ) as response:
                if response.status_code != httpx2.codes.OK:
                    raise Unanswered(f"status {response.status_code}")
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise Unanswered("a compressed answer, which was not asked for")
                return await _read(response, most)
        except httpx2.HTTPError as error:
            # Only its kind: its text may quote the request.
            raise Unanswered(type(error).__name__) from None


def _why(error: BaseException) -> str:
    """What came between, in words that quote nothing of the request."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"there is no TLS with it: {cause.reason or type(cause).__name__}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx2.ConnectError):
        return "nobody answers there"
    return f"the connection broke off ({type(error).__name__})"


async def _read(response: httpx2.Response, most: int) -> bytes:
    body = bytearray()
    with trio.CancelScope() as reading:
        async for part in response.aiter_raw():
            body += part
            if len(body) > most:
                # Not `break`, which would leave the generators below this one to the collector.
                reading.cancel()
    if len(body) > most:
        raise Unanswered(f"more than {most} bytes")
    return bytes(body)


@asynccontextmanager
async def open_outbound() -> AsyncIterator[Outbound]:
    """A client whose connections end with the block."""
    async with httpx2.AsyncClient(
        verify=httpx2.create_ssl_context(),
        trust_env=False,
        follow_redirects=False,
        timeout=None,  # cancel scopes do this
        limits=httpx2.Limits(max_connections=CONNECTIONS),
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
    ) as client:
        client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        yield Outbound(client)


@define(eq=False)
class Condition:
    """Says in the log when a server begins to fail, and when it answers again; not each time."""

    _of: str
    _trouble: str | None = None

    def fails(self, why: str) -> None:
        if why != self._trouble:
            log.warning("another server gives no answer", server=self._of, why=why)
        self._trouble = why

    def answers(self) -> None:
        if self._trouble is not None:
            log.info("another server answers again", server=self._of)
        self._trouble = None
