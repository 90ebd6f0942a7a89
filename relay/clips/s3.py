"""Stills and clips as objects of an S3-compatible storage.

Requests are signed by botocore, in a thread, and sent by relay's own client. What is stored has the
same names as files have: of alerts, in a folder for each day.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self

import trio
from attrs import define, field, frozen

from relay.clips.storage import NotStored
from relay.errors import ConfigError
from relay.model.alerts.alert_picture import PictureName
from relay.outgoing.http_client import RequestFailed
from relay.outgoing.object_client import ObjectAnswer, ObjectClient

MAX_OBJECT_BYTES = 96 << 20
"""Of an object that is read; more is not written."""
MAX_RANGE_BYTES = 1 << 20
"""That are asked for at once: so that nobody holds more of an object."""
MAX_STATUS_BODY_BYTES = 64 * 1024
"""Of an answer without a picture."""
KEY_VARIABLE, SECRET_VARIABLE = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
MAX_CREDENTIALS_BYTES = 4096

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})")

Sign = Callable[[str, str, Mapping[str, str], bytes], Mapping[str, str]]
"""Gives the headers of a signed request: its method, URL, other headers and body are given."""


@frozen
class S3Credentials:
    """An access key and its secret, neither of which is shown anywhere."""

    key: str = field(repr=False)
    secret: str = field(repr=False)

    @classmethod
    def read(cls, file: Path | None, environment: Mapping[str, str] = os.environ) -> Self:
        """From a file with the key and the secret on a line each, or from the variables that other
        programs use; `ConfigError`, which quotes nothing."""
        if file is None:
            found = [environment.get(KEY_VARIABLE, ""), environment.get(SECRET_VARIABLE, "")]
            where = f"{KEY_VARIABLE} and {SECRET_VARIABLE}"
        else:
            found, where = _lines_of(file), f"{file} (picture_s3_credentials)"
        words = [each.strip() for each in found]
        if len(words) != 2 or not all(re.fullmatch(r"[\x21-\x7e]+", each) for each in words):
            raise ConfigError(
                f"picture_s3 needs an access key and its secret: {where} should have them"
            )
        return cls(*words)


def _lines_of(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_CREDENTIALS_BYTES)
            mode = os.fstat(opened.fileno()).st_mode
    except OSError as problem:
        raise ConfigError(
            f"picture_s3_credentials: cannot read {file}: {problem.strerror}"
        ) from None
    if mode & 0o077:
        raise ConfigError(f"picture_s3_credentials: others may read {file}; chmod 600 it")
    return content.decode("ascii", "replace").split()


def make_signer(credentials: S3Credentials, region: str) -> Sign:
    """What signs requests; `ConfigError` where botocore is not installed."""
    try:
        from botocore.auth import S3SigV4Auth  # noqa: PLC0415 (an extra)
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.credentials import Credentials  # noqa: PLC0415
    except ImportError:
        raise ConfigError("picture_s3 needs botocore: install relay with its extra `s3`") from None
    auth = S3SigV4Auth(Credentials(credentials.key, credentials.secret), "s3", region)

    def sign(method: str, url: str, headers: Mapping[str, str], body: bytes) -> Mapping[str, str]:
        request = AWSRequest(method, url, dict(headers), body)
        auth.add_auth(request)
        return dict(request.headers.items())

    return sign


@define(eq=False)
class S3Storage:
    """A `PictureStorage` in a bucket."""

    _url: str
    """Of the bucket, and what the names of objects begin with."""
    _client: ObjectClient
    _sign: Sign

    async def place(self) -> str:
        await trio.lowlevel.checkpoint()
        return f"s3:{hashlib.sha256(self._url.encode()).hexdigest()[:32]}"

    async def write(self, name: PictureName, pieces: Sequence[bytes]) -> None:
        body = b"".join(pieces)
        if len(body) > MAX_OBJECT_BYTES:
            raise NotStored("it is too large")
        media_type = "image/jpeg" if name.kind == "still" else "application/octet-stream"
        answer = await self._ask("PUT", name, {"Content-Type": media_type}, body)
        _require(answer, 200)

    @asynccontextmanager
    async def open(self, name: PictureName) -> AsyncIterator[S3Object]:
        """Read an object; `NotStored` if it is not there."""
        first, size = await self._read_range(name, 0)
        yield S3Object(partial(self._read_range, name), size, first)

    async def remove(self, names: Sequence[PictureName]) -> None:
        for name in names:
            _require(await self._ask("DELETE", name), 200, 204, 404)

    async def sweep(self, before_day: int) -> None:  # noqa: ARG002
        """What nobody knows of is for a rule of the bucket to remove."""
        await trio.lowlevel.checkpoint()

    async def check(self) -> None:
        """Write an object and remove it again; `NotStored`."""
        name = PictureName(0, "still")
        await self.write(name, [b"relay can write here"])
        await self.remove([name])

    async def _read_range(self, name: PictureName, start: int) -> tuple[bytes, int]:
        """Some bytes from a place on, and how many there are in all."""
        end = start + MAX_RANGE_BYTES - 1
        answer = await self._ask("GET", name, {"Range": f"bytes={start}-{end}"})
        _require(answer, 206)
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if found is None or int(found[1]) != start or int(found[3]) > MAX_OBJECT_BYTES:
            raise NotStored("the storage gives other bytes than were asked for")
        return answer.body, int(found[3])

    async def _ask(
        self,
        method: str,
        name: PictureName,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> ObjectAnswer:
        url = f"{self._url}/{name.folder}/{name.file}"
        signed = await trio.to_thread.run_sync(
            self._sign, method, url, headers or {}, body, abandon_on_cancel=True
        )
        most = MAX_RANGE_BYTES if method == "GET" else MAX_STATUS_BODY_BYTES
        try:
            return await self._client.send(method, url, signed, body, max_bytes=most)
        except RequestFailed as problem:
            raise NotStored(f"the object storage: {problem}") from None


@define(eq=False)
class S3Object:
    """A `PictureFile`: it is read in ranges, and nothing is open between two of them."""

    _fetch: Callable[[int], Awaitable[tuple[bytes, int]]]
    size: int
    _read_ahead: bytes
    _at: int = 0
    """Of the first byte in `_read_ahead`."""

    async def read(self, count: int) -> bytes:
        if not self._read_ahead and self._at < self.size:
            self._read_ahead, _ = await self._fetch(self._at)
        count = min(count, self.size - self._at)  # whatever more it may have sent
        found, self._read_ahead = self._read_ahead[:count], self._read_ahead[count:]
        self._at += len(found)
        return found

    def seek(self, at: int) -> None:
        skipped = at - self._at
        self._read_ahead = self._read_ahead[skipped:] if skipped >= 0 else b""
        self._at = at


def _require(answer: ObjectAnswer, *statuses: int) -> None:
    """`NotStored` unless the answer has one of these statuses. What it says is not quoted."""
    if answer.status in statuses:
        return
    code = re.search(rb"<Code>([A-Za-z]{1,64})</Code>", answer.body)
    told = f" ({code[1].decode()})" if code else ""
    raise NotStored(f"the object storage answers {answer.status}{told}")
