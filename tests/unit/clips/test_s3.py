"""Objects of a storage that does not do what it should."""

from __future__ import annotations

from typing import cast

import pytest
import trio
from attrs import frozen

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
