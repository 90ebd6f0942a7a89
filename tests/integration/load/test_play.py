"""The load tester's actors against the real relay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

from relay.demo.video import default_video
from relay.load.actors.frames.payloads import RecordedFrames, read_trace
from relay.load.actors.network.endpoint import Endpoint
from relay.load.measures.builtin_checks import INTEGRITY_COUNTS
from relay.load.measures.stats import RunStats, endings_of, layer_counts
from relay.load.record import record
from relay.load.scenario.groups import HOSTILE_KINDS
from tests.integration.accounts import Accounts
from tests.integration.peers import login, new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay
from tests.load_play import play_toml


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    """One that bans nobody for tokens that are wrong."""
    with start_relay("--profile", "load", database_url=database_url) as relay:
        yield relay


async def play_here(
    source: str,
    relay: RelayProcess,
    accounts: Accounts,
    folder: Path = Path(),
    *,
    hostile: str | None = None,
) -> RunStats:
    endpoint = Endpoint(
        relay.url.replace("http", "ws", 1),
        (accounts.session("ann"),),
        (accounts.service("*"),),
        hostile_tokens=() if hostile is None else (hostile,),
    )
    run_stats, _ = await play_toml(source, endpoint, run=new_stream_id()[-8:], folder=folder)
    return run_stats


async def test_a_viewer_at_1_mbit_gets_1_mbit_and_not_more_and_its_frames_do_not_age(
    relay: RelayProcess, accounts: Accounts
) -> None:
    run_stats = await play_here(
        """
        duration = "4s"
        [phones.p]
        fps = 20
        frames = "32KiB"
        [viewers.slow]
        watch = "p"
        window = 2
        network = { bandwidth = "1Mbit/s" }
        [viewers.fast]
        watch = "p"
        """,
        relay,
        accounts,
    )
    slow, fast = run_stats.group("slow"), run_stats.group("fast")
    megabits = slow.counts["bytes.in"] * 8 / 1e6 / 5  # until the grace is over
    assert 0.6 < megabits <= 1.1
    assert slow.counts["missed"] > slow.counts["received"] >= 8
    assert fast.counts["missed"] <= 4
    median = slow.time("frame_age").statistic("p50")
    assert median is not None
    assert 0.26 < median < 1.1  # 262 ms on the wire, twice that with a frame before it
    assert run_stats.total().counts["closes"] == 0


async def test_phones_that_are_torn_off_come_back_and_nothing_is_lost_or_doubled(
    relay: RelayProcess, accounts: Accounts
) -> None:
    run_stats = await play_here(
        """
        [phones.p]
        count = 3
        fps = 20
        frames = { size = "1KiB", most = "8KiB" }
        reconnect = { after = "100ms" }
        [viewers.v]
        watch = "p"
        count = 3
        reconnect = { after = "100ms" }
        [services.s]
        watch = "p"
        rate = "10/s"
        reconnect = { after = "100ms" }
        [[stages]]
        duration = "1s"
        [[stages]]
        duration = "2s"
        cut = ["p", "v", "s"]
        """,
        relay,
        accounts,
    )
    counts = run_stats.total().counts
    assert counts["reconnects"] == 7
    assert counts["connect.done"] == 14
    assert counts["closes.unexpected"] == 0
    for fault in ("lost", "torn", "doubled", "disordered", "foreign", "alerts.doubled"):
        assert counts[fault] == 0
    assert counts["received"] > 100


async def test_hostile_clients_do_not_trouble_the_others(
    relay: RelayProcess, accounts: Accounts
) -> None:
    """All kinds that there are; each does what it is for, and comes from another address."""
    hostiles = "".join(
        f'[hostiles.{kind}]\nkind = "{kind}"\ncount = 2\nwatch = "p"\naddresses = 9\n'
        for kind in HOSTILE_KINDS
    )
    source = f"""
        duration = "3s"
        [phones.p]
        fps = 20
        frames = "16KiB"
        [viewers.v]
        watch = "p"
        {hostiles}
        """
    run_stats = await play_here(source, relay, accounts, hostile=accounts.session("mallory"))
    viewer = run_stats.group("v").counts
    assert viewer["received"] > 10  # all of this is one process
    assert (viewer["lost"], viewer["closes"]) == (0, 0)
    for kind in HOSTILE_KINDS:
        assert run_stats.group(kind).counts["attacks"] >= 2, kind
    assert set(endings_of(run_stats.group("bad-token").counts)) == {"AUTH_FAILED"}
    assert "MESSAGE_TOO_BIG" in endings_of(run_stats.group("oversized").counts)
    assert run_stats.group("heavy-alerts").counts["alerts.sent"] >= 2
    assert run_stats.group("flood").counts["attacks"] > 100


async def test_viewers_that_look_into_no_frame_count_what_they_get_and_what_is_missing(
    relay: RelayProcess, accounts: Accounts
) -> None:
    run_stats = await play_here(
        """
        duration = "3s"
        [phones.p]
        fps = 50
        frames = "16KiB"
        [viewers.crowd]
        watch = "p"
        count = 3
        inspect = false
        [viewers.slow]
        watch = "p"
        inspect = false
        network = { bandwidth = "1Mbit/s" }
        """,
        relay,
        accounts,
    )
    sent = run_stats.group("p").counts["sent"]
    crowd, slow = run_stats.group("crowd"), run_stats.group("slow").counts
    assert crowd.counts["received"] + crowd.counts["missed"] > 3 * (sent - 15)
    assert slow["missed"] > slow["received"] > 5
    assert slow["missed"] == slow["skipped"]
    assert "frame_age" not in crowd.times
    assert crowd.counts["foreign"] == 0


async def test_viewers_that_watch_nothing_are_authenticated_and_stay(
    relay: RelayProcess, accounts: Accounts
) -> None:
    run_stats = await play_here(
        """
        [viewers.v]
        watch = false
        count = 20
        reconnect = { after = "0s" }
        [[stages]]
        duration = "500ms"
        [[stages]]
        duration = "1s"
        cut = ["v"]
        """,
        relay,
        accounts,
    )
    counts = run_stats.group("v").counts
    assert (counts["auth.done"], counts["reconnects"]) == (40, 20)
    assert (counts["closes"], counts["errors"]) == (0, 0)


async def test_a_video_file_is_played_and_every_frame_is_whole(
    relay: RelayProcess, accounts: Accounts
) -> None:
    source = f"""
        duration = "1s"
        [phones.p]
        fps = 20
        frames = {{ video = "{default_video()}" }}
        [viewers.v]
        watch = "p"
        """
    run_stats = await play_here(source, relay, accounts)
    counts = run_stats.group("v").counts
    assert counts["received"] > 10
    assert counts["torn"] == 0


async def test_a_session_is_recorded_and_replayed_at_its_own_pace(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path
) -> None:
    token, stream = accounts.session("ann"), new_stream_id()
    path = tmp_path / "door.trace"
    url = relay.url.replace("http", "ws", 1)
    async with login(relay, token) as phone, trio.open_nursery() as nursery:
        await phone.register(stream)

        async def film() -> None:
            for number in range(100):
                await phone.send_frame(bytes((number,)) * (100 + number))
                await trio.sleep(0.02)

        nursery.start_soon(film)
        recorder = await record(url, stream, token, path, seconds=1.0, with_data=True)
        nursery.cancel_scope.cancel()
    assert recorder.frames > 20
    assert recorder.missed == 0
    trace = read_trace(path)
    assert len(trace.frames) == recorder.frames
    body = RecordedFrames(trace, b"").body(0, 0, is_delta=False)
    assert body == body[:1] * (100 + body[0])
    source = """
        duration = "1s"
        [phones.p]
        frames = { recording = "door.trace" }
        [viewers.v]
        watch = "p"
        """
    run_stats = await play_here(source, relay, accounts, tmp_path)
    counts = run_stats.group("v").counts
    assert counts["torn"] == 0
    assert counts["received"] >= recorder.frames / 2


SCRIPT = """
import trio

async def phone(actor):
    async with actor.connect() as client:
        await client.register(actor.stream("door"))
        for number in range(20):
            await actor.until(1 + number / 20)
            await client.send_frame(actor.frame(bytes(100)))
        await trio.sleep_forever()

async def viewer(actor):
    async with actor.connect() as client:
        await client.subscribe(actor.stream("door"))
        async for frame in actor.watch(client):
            pass

async def broken(actor):
    raise LookupError("a bug of the script")

ACTORS = {"phone": phone, "viewer": (viewer, 3), "broken": broken}
"""


async def test_a_script_runs_on_the_client_with_the_same_figures(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path
) -> None:
    (tmp_path / "actors.py").write_text(SCRIPT)
    source = 'duration = "2s"\nscript = "actors.py"\ncheck = ["viewer.frame_age.p99 < 1s"]'
    run_stats = await play_here(source, relay, accounts, tmp_path)
    assert run_stats.group("phone").counts["sent"] == 20
    received = run_stats.group("viewer").counts["received"]
    assert 40 < received <= 60, "where the machine is busy, some come after the first frames"
    assert run_stats.group("viewer").counts["missed"] == 0
    assert run_stats.group("viewer").time("frame_age").count == received
    assert run_stats.group("broken").errors == {"LookupError: a bug of the script": 1}


async def test_a_service_of_phones_of_whom_there_are_none_raises_nothing(
    relay: RelayProcess, accounts: Accounts
) -> None:
    source = """
    duration = "1s"
    [phones.p]
    count = 0
    [viewers.v]
    watch = "p"
    [services.s]
    watch = "p"
    rate = "20/s"
    """
    run_stats = await play_here(source, relay, accounts)
    assert run_stats.group("s").counts["auth.done"] == 1
    assert run_stats.group("s").counts["alerts.sent"] == 0
    assert run_stats.total().errors == {}


@pytest.mark.parametrize("sessions", [1, 3])
def test_tokens_are_given_out_in_turn(sessions: int) -> None:
    endpoint = Endpoint("ws://x", tuple("abc"[:sessions]), ("s",))
    assert {endpoint.token(number) for number in range(9)} == set("abc"[:sessions])
    assert endpoint.token(5, service=True) == "s"
    assert "tokens" not in repr(attrs.evolve(endpoint))


async def test_each_viewer_gets_one_layer_of_each_picture_as_its_link_and_its_terms_allow(
    relay: RelayProcess, accounts: Accounts
) -> None:
    source = """
        duration = "4s"
        [phones.p]
        fps = 20
        keyframe_every = 10
        layers = [
            { id = "l", width = 320, size = "8KiB", delta_size = "2KiB" },
            { id = "m", width = 640, size = "24KiB", delta_size = "6KiB" },
            { id = "h", width = 1280, size = "64KiB", delta_size = "32KiB" },
        ]
        [viewers.fast]
        watch = "p"
        count = 2
        [viewers.tile]
        watch = "p"
        encoding = "json"
        max_width = 640
        [viewers.menu]
        watch = "p"
        layer = "l"
        [viewers.slow]
        watch = "p"
        network = { bandwidth = "0.5Mbit/s" }
        """
    for _ in range(3):
        run_stats = await play_here(source, relay, accounts)
        total = run_stats.total()
        assert not any(total.counts[fault] for fault in INTEGRITY_COUNTS)
        assert total.errors == {}
        fast, tile, menu, slow = map(run_stats.group, ("fast", "tile", "menu", "slow"))
        # A viewer that a busy machine lets answer late has a slow link as long as that lasts.
        if fast.counts["layer.h"] > fast.counts["pictures"] / 2:
            break
    for stats in (fast, tile, menu, slow):
        layers = layer_counts(stats.counts)
        assert sum(layers.values()) == stats.counts["pictures"] > 10
        assert len(layers) - 1 <= stats.counts["switches"]
    assert fast.counts["layer.h"] > fast.counts["pictures"] / 2
    assert tile.counts["layer.m"] > tile.counts["pictures"] / 2
    assert tile.counts["layer.h"] == 0
    assert menu.counts["layer.l"] == menu.counts["pictures"]
    assert slow.counts["layer.l"] > slow.counts["pictures"] / 2
    # In its smallest layer the slow one may get all of them, too.
    assert (fast.rate("pictures_per_second") or 0) > 0.9 * (slow.rate("pictures_per_second") or 20)


async def test_a_viewer_that_comes_between_two_keyframes_is_sent_one_soon(
    relay: RelayProcess, accounts: Accounts
) -> None:
    source = """
        duration = "3s"
        [phones.p]
        fps = 20
        frames = { size = "16KiB", delta_size = "2KiB" }
        keyframe_every = 1000
        [viewers.first]
        watch = "p"
        [viewers.late]
        watch = "p"
        count = 2
        arrival = { over = "1s", after = "1s" }
        """
    run_stats = await play_here(source, relay, accounts)
    assert not any(run_stats.total().counts[fault] for fault in INTEGRITY_COUNTS)
    assert run_stats.group("late").counts["pictures"] > 20


@pytest.mark.slow
async def test_smaller_pictures_that_the_relay_makes_are_checked_and_counted_as_layers(
    relay: RelayProcess, accounts: Accounts
) -> None:
    source = f"""
        duration = "5s"
        [phones.p]
        fps = 15
        frames = {{ video = "{default_video()}" }}
        [viewers.slow]
        watch = "p"
        count = 2
        network = {{ bandwidth = "0.3Mbit/s" }}
        [viewers.json]
        watch = "p"
        encoding = "json"
        max_width = 320
        [viewers.fast]
        watch = "p"
        """
    run_stats = await play_here(source, relay, accounts)
    assert not any(run_stats.total().counts[fault] for fault in INTEGRITY_COUNTS)
    for name in ("slow", "json"):
        stats = run_stats.group(name)
        assert stats.counts["layer.320"] > stats.counts["pictures"] / 2
        assert stats.time("frame_age").count >= stats.counts["layer.320"]
    assert layer_counts(run_stats.group("fast").counts) == {}
