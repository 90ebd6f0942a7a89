"""The body of an HTTP request is bounded in time."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from starlette.requests import Request

from relay.protocol.messages import ErrorCode
from relay.web.api import BODY_TIMEOUT, ApiError, read_body

pytestmark = pytest.mark.mock_clock


async def trickle() -> dict[str, Any]:
    """A byte a second, for ever."""
    await trio.sleep(1)
    return {"type": "http.request", "body": b"x", "more_body": True}


async def test_a_body_that_never_ends_is_refused_in_time() -> None:
    begun = trio.current_time()
    with pytest.raises(ApiError) as refused:
        await read_body(Request({"type": "http", "method": "POST"}, trickle))
    assert (refused.value.status_code, refused.value.code) == (408, ErrorCode.INVALID_MESSAGE)
    assert trio.current_time() - begun == BODY_TIMEOUT
