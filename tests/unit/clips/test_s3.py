"""Objects of a storage that does not do what it should."""

from __future__ import annotations

from typing import cast

import pytest
import trio
from attrs import define, field, frozen

from relay.clips.s3 import S3Storage
from relay.clips.storage import NotStored
from relay.model.alerts.alert_picture import PictureName
from relay.outgoing.object_client import ObjectAnswer, ObjectClient

STILL = PictureName(1_700_000_000_000_000, "still")


@frozen
class Liar:
    """Answers everything with the same range."""

    content_range: str
    body: bytes = b"abc"

    async def send(self, *_request: object, max_bytes: int) -> ObjectAnswer:
        await trio.lowlevel.checkpoint()
        assert len(self.body) <= max_bytes
        return ObjectAnswer(206, {"content-range": self.content_range}, self.body)


def storage_of(liar: Liar) -> S3Storage:
    return S3Storage("https://s3.test/kept", cast("ObjectClient", liar), lambda *_request: {})


@pytest.mark.parametrize(
    "content_range",
    ["", "bytes 0-2/*", "bytes 5-7/9", "bytes 0-2/999999999999", f"bytes 0-2/{'9' * 5000}"],
)
async def test_a_range_that_was_not_asked_for_is_no_object(content_range: str) -> None:
    with pytest.raises(NotStored, match="other bytes"):
        async with storage_of(Liar(content_range)).open(STILL):
            pass


async def test_no_more_is_read_than_the_object_has() -> None:
    async with storage_of(Liar("bytes 0-2/3", b"abcdef")).open(STILL) as file:
        assert [await file.read(100), await file.read(100)] == [b"abc", b""]


async def test_an_object_that_becomes_shorter_ends_early() -> None:
    async with storage_of(Liar("bytes 0-2/9", b"")).open(STILL) as file:
        assert (file.size, await file.read(100)) == (9, b"")


@define(eq=False)
class Bucket:
    """Holds one object, and answers with its ranges."""

    content: bytes
    starts: list[int] = field(factory=list)

    async def send(
        self, _method: str, _url: str, headers: dict[str, str], _body: bytes, *, max_bytes: int
    ) -> ObjectAnswer:
        await trio.lowlevel.checkpoint()
        start = int(headers["Range"].removeprefix("bytes=").partition("-")[0])
        self.starts.append(start)
        part = self.content[start : start + max_bytes]
        told = f"bytes {start}-{start + len(part) - 1}/{len(self.content)}"
        return ObjectAnswer(206, {"content-range": told}, part)


async def test_an_object_is_read_from_any_place_and_what_is_known_is_not_fetched_again() -> None:
    bucket = Bucket(bytes(range(256)) * 4096 * 3)
    client = cast("ObjectClient", bucket)
    storage = S3Storage(
        "https://s3.test/kept", client, lambda _method, _url, headers, _body: headers
    )
    async with storage.open(STILL) as file:
        assert await file.read(2) == b"\x00\x01"
        file.seek(1000)
        assert await file.read(2) == bucket.content[1000:1002]
        assert bucket.starts == [0]
        file.seek(2_000_001)
        assert await file.read(2) == bucket.content[2_000_001:2_000_003]
        file.seek(5)
        assert await file.read(2) == b"\x05\x06"
    assert bucket.starts == [0, 2_000_001, 5]
