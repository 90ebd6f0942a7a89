"""Links to pictures for messages: made seldom, and never waited for in vain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import pytest
import trio
from attrs import define, evolve, field

from relay.alerts.targets.still_links import STILL_LINK_SECONDS, TargetStillLinks
from relay.errors import ConfigError, StoreUnavailable
from relay.model.access.link import NewLink, PictureLink
from relay.model.cluster import LiveStream
from relay.model.targets.alert_target import AlertTarget
from relay.protocol.messages import StreamStatus

pytestmark = pytest.mark.mock_clock

NOW = datetime.now(UTC)
TARGET = AlertTarget(
    *("ntfy_1", "ntfy", "https://ntfy/door", "", 0, None, "door", NOW),
    *(0, 0, None, None, None),
)


@define(eq=False)
class LinkTable:
    made: list[tuple[NewLink, str, str | None]] = field(factory=list)
    before_query: Callable[[], object] = field(default=lambda: None)

    async def owner_of(self, stream_id: str) -> tuple[str, bool]:
        self.before_query()
        return f"owner of {stream_id}", True

    async def make(
        self, link: NewLink, user_id: str, *, by_session: bool, target_id: str | None = None
    ) -> tuple[PictureLink, str]:
        self.before_query()
        self.made.append((link, user_id, target_id))
        made = PictureLink("id", link.stream_id, link.purpose, user_id, link.readers, NOW)
        return made, f"relay_link_{len(self.made)}"


@define(eq=False)
class LiveStreamTable:
    rows: list[LiveStream] = field(factory=list)

    async def find(self, stream_ids: Sequence[str]) -> list[LiveStream]:
        return [each for each in self.rows if each.stream_id in stream_ids]


@define(eq=False)
class LinkSetup:
    table: LinkTable = field(factory=LinkTable)
    elsewhere: LiveStreamTable = field(factory=LiveStreamTable)
    here: dict[str, bool] = field(factory=dict)
    links: TargetStillLinks = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.links = TargetStillLinks(
            self.table, self.elsewhere, self.here.get, "https://relay.example.org/base"
        )


@pytest.fixture
def setup() -> LinkSetup:
    return LinkSetup()


async def test_a_link_is_to_the_still_of_one_stream_in_the_name_of_its_owner(
    setup: LinkSetup,
) -> None:
    setup.here["door"] = True
    url = await setup.links.link_to(TARGET, "door")
    assert url == "https://relay.example.org/base/streams/door/latest.jpg?link=relay_link_1"
    [(link, owner, target_id)] = setup.table.made
    assert (link.stream_id, link.purpose, link.seconds) == ("door", "still", STILL_LINK_SECONDS)
    assert (owner, target_id) == ("owner of door", "ntfy_1")


async def test_it_is_used_until_it_is_half_through_its_life(setup: LinkSetup) -> None:
    setup.here |= {"door": True, "gate": True}
    target = evolve(TARGET, options={"picture": True, "picture_for": 600})
    first = await setup.links.link_to(target, "door")
    await trio.sleep(299)
    assert await setup.links.link_to(target, "door") == first
    assert await setup.links.link_to(target, "gate") != first
    assert await setup.links.link_to(evolve(target, target_id="ntfy_2"), "door") != first
    await trio.sleep(2)
    assert await setup.links.link_to(target, "door") != first
    assert len(setup.table.made) == 4


METADATA = {
    "no metadata": (None, False),
    "JPEG": ({"codec": "JPEG"}, True),
    "a MIME type": ({"mimeType": "image/jpeg"}, True),
    "H.264": ({"codec": "avc1.42E028"}, False),
    "nonsense": ({"codec": ["jpeg"], "mimeType": 7}, False),
}


@pytest.mark.parametrize(("metadata", "has_link"), METADATA.values(), ids=METADATA)
async def test_of_a_stream_on_another_node_its_metadata_says_whether_it_is_jpeg(
    setup: LinkSetup, metadata: dict[str, object] | None, *, has_link: bool
) -> None:
    row = LiveStream("door", "ann", "node", 1, 7, StreamStatus.ONLINE, metadata)
    setup.elsewhere.rows.append(row)
    assert (await setup.links.link_to(TARGET, "door") is not None) == has_link


async def test_there_is_none_of_a_stream_that_is_not_live_or_sends_no_jpeg(
    setup: LinkSetup,
) -> None:
    setup.here["door"] = False
    setup.elsewhere.rows.append(
        LiveStream("door", "ann", "node", 1, 7, StreamStatus.ONLINE, {"codec": "jpeg"})
    )
    assert await setup.links.link_to(TARGET, "door") is None
    assert await setup.links.link_to(TARGET, "gate") is None
    assert setup.table.made == []


@pytest.mark.parametrize("problem", [StoreUnavailable(), ConfigError("too many")])
async def test_where_none_can_be_made_there_is_none(setup: LinkSetup, problem: Exception) -> None:
    def fail() -> None:
        raise problem

    setup.here["door"] = True
    setup.table.before_query = fail
    assert await setup.links.link_to(TARGET, "door") is None
    setup.table.before_query = lambda: None
    assert await setup.links.link_to(TARGET, "door") is not None


async def test_a_link_is_not_in_what_is_printed(setup: LinkSetup) -> None:
    assert "relay_link" not in repr(setup.links)
