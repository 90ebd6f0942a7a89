"""The load tester against servers that lie in known ways: each lie is found, at its size."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
import trio

from relay.load.measures.stats import RunStats, layer_counts
from tests.integration.lying_relay import Lies, open_liar
from tests.load_play import play_and_reconcile

FRAMES = 100
LENGTH = 1.0
"""Seconds in which they are sent."""
SCENARIO = """
duration = "1s"
grace = "500ms"
[target]
url = "ws://127.0.0.1:1"
[phones.a]
count = {phones}
fps = 100
frames = "2KiB"
reconnect = false
backlog = "300ms"
[viewers.v]
watch = "a"
count = {phones}
encoding = "json"
reconnect = false
[services.s]
watch = "a"
rate = "10/s"
reconnect = false
arrival = {{ after = "200ms" }}
"""
HONEST = dict.fromkeys(
    (
        *("lost", "torn", "doubled", "disordered", "foreign", "mislabeled", "undecodable"),
        "misnumbered",
        *("alerts.lost", "alerts.doubled"),
    ),
    0,
)


async def play(lies: Lies, phones: int = 1, *, scenario: str = SCENARIO) -> tuple[RunStats, int]:
    """Returns the book and how many frames came to the server."""
    async with open_liar(lies) as liar:
        run_stats = await play_and_reconcile(scenario.format(phones=phones), liar.url)
        return run_stats, liar.frames


def longest_gap(run_stats: RunStats) -> float:
    return run_stats.group("v").time("gap").statistic("max") or 0.0


def faults(run_stats: RunStats) -> dict[str, int]:
    counts = run_stats.total().counts
    return {name: counts[name] for name in HONEST}


async def test_of_an_honest_server_nothing_is_said() -> None:
    run_stats, frames = await play(Lies())
    assert faults(run_stats) == HONEST
    assert run_stats.group("v").counts["received"] == frames == run_stats.group("a").counts["sent"]
    assert run_stats.group("v").counts["missed"] == 0
    assert frames > FRAMES / 2
    assert run_stats.group("s").counts["alerts.accepted"] >= 3
    assert longest_gap(run_stats) < 0.5


async def test_a_server_that_knows_no_layers_gets_the_largest_alone() -> None:
    source = """
        duration = "500ms"
        [phones.a]
        fps = 50
        layers = [{ id = "l", size = "1KiB" }, { id = "h", size = "4KiB" }]
        [viewers.v]
        watch = "a"
        encoding = "json"
        """
    async with open_liar(Lies()) as liar:
        run_stats = await play_and_reconcile(source, liar.url)
    viewer, phone = run_stats.group("v"), run_stats.group("a")
    assert liar.frames == phone.counts["sent"] > 10
    assert viewer.counts["pictures"] > 10
    assert viewer.counts["frames.bytes"] > 4096 * viewer.counts["received"]
    assert layer_counts(viewer.counts) == {}
    assert faults(run_stats) == HONEST


async def test_each_twentieth_frame_that_is_lost_in_silence_is_counted_as_lost() -> None:
    run_stats, frames = await play(Lies(lose_every=20))
    lost = run_stats.group("v").counts["lost"] + run_stats.group("v").counts["missed"]
    assert lost == frames // 20
    assert faults(run_stats) == {**HONEST, "lost": (frames - 1) // 20}


async def test_what_is_missing_with_a_gap_in_seq_is_missed_and_not_lost() -> None:
    run_stats, frames = await play(Lies(lose_every=20, admits=True))
    assert faults(run_stats) == HONEST
    assert run_stats.group("v").counts["missed"] == frames // 20


async def test_a_doubled_frame_is_counted_as_often_as_it_came() -> None:
    run_stats, frames = await play(Lies(double_every=30))
    assert faults(run_stats) == {**HONEST, "doubled": frames // 30}


async def test_a_number_that_comes_twice_in_an_epoch_is_counted() -> None:
    run_stats, frames = await play(Lies(repeat_seq_every=20))
    assert faults(run_stats) == {**HONEST, "misnumbered": frames // 20}


async def test_a_torn_frame_is_counted() -> None:
    run_stats, frames = await play(Lies(tear_every=40))
    torn = frames // 40
    assert faults(run_stats) == {**HONEST, "torn": torn}


async def test_frames_out_of_order_are_counted_and_not_missed() -> None:
    run_stats, frames = await play(Lies(late_every=25))
    counts = run_stats.group("v").counts
    assert counts["disordered"] == (frames - 1) // 25
    assert (counts["lost"], counts["doubled"]) == (0, 0)


async def test_frames_of_another_stream_are_counted_as_foreign() -> None:
    run_stats, frames = await play(Lies(swap_every=50), phones=2)
    assert run_stats.group("v").counts["foreign"] == frames // 50
    assert run_stats.group("v").counts["torn"] == 0


async def test_a_delay_of_50_ms_is_measured_as_50_ms() -> None:
    async with open_liar(Lies(delay=0.05)) as liar:
        run_stats = await play_and_reconcile(SCENARIO.format(phones=1), liar.url)
    age = run_stats.group("v").time("frame_age")
    assert age.count > 20
    least = age.statistic("min")  # of the others some wait for a busy machine
    assert least is not None
    assert 0.0495 <= least < min(liar.delays) + 0.02


async def test_a_server_that_stops_reading_makes_the_phone_leave_frames_out_and_say_so() -> None:
    scenario = SCENARIO.replace("2KiB", "256KiB").format(phones=1)
    async with open_liar(Lies(stops_reading_after=10)) as liar:
        start = trio.current_time()
        run_stats = await play_and_reconcile(scenario, liar.url)
        until_stop, after_stop = liar.stopped_at - start, trio.current_time() - liar.stopped_at
    counts = run_stats.group("a").counts
    assert counts["sent"] < 70
    assert run_stats.group("v").counts["missed"] >= counts["sent"] - 10 - 1
    # No frame came from then to the end of the run.
    assert LENGTH - until_stop - 0.1 < longest_gap(run_stats) < after_stop


async def test_alerts_that_come_twice_are_counted() -> None:
    run_stats, _ = await play(Lies(alert_twice=True))
    received = run_stats.total().counts["alerts.received"]
    assert received >= 4  # the phone and the viewer
    assert faults(run_stats) == {**HONEST, "alerts.doubled": received}


async def test_alerts_that_were_acknowledged_and_never_came_are_lost() -> None:
    # Who begins to watch after an alert does not miss it, so alerts begin late.
    later = SCENARIO.replace("1s", "2s", 1).replace("200ms", "1200ms")
    run_stats, _ = await play(Lies(lose_alerts=True), scenario=later)
    accepted = run_stats.group("s").counts["alerts.accepted"]
    assert accepted >= 5  # more than are excused
    # Those that it may have got too late to hear of them before it left are not held against it.
    for group, excused in (("a", 4), ("v", 0)):
        assert accepted - excused <= run_stats.group(group).counts["alerts.lost"] <= accepted


@pytest.mark.parametrize(("code", "unannounced"), [(4002, 1), (1011, 0)])
async def test_a_close_without_a_word_before_it_is_counted(code: int, unannounced: int) -> None:
    run_stats, _ = await play(Lies(close_with=code))
    counts = run_stats.group("v").counts
    assert (counts["closes"], counts["closes.unexpected"]) == (1, 1)
    assert counts["closes.unannounced"] == unannounced
    assert run_stats.group("v").errors == {f"closed with {code} (because)": 1}


async def test_a_token_that_is_refused_is_a_failed_auth_and_is_not_tried_again() -> None:
    run_stats, _ = await play(Lies(refuses_tokens=True))
    total = run_stats.total()
    assert (total.counts["auth.failed"], total.counts["connect.done"]) == (3, 3)
    assert total.errors == {"AUTH_FAILED:": 3}


async def test_a_connection_that_the_scenario_tears_off_is_no_failed_auth() -> None:
    source = """
        duration = "1s"
        [phones.a]
        network = { cut_every = "100ms" }
        reconnect = { after = "50ms", factor = 1 }
        """
    async with open_liar(Lies(silent=True)) as liar:
        run_stats = await play_and_reconcile(source, liar.url)
    stats = run_stats.group("a")
    assert stats.errors["torn off by the scenario"] >= 1
    assert stats.counts["auth.failed"] == 0


@pytest.mark.parametrize(
    "cut",
    [
        'duration = "2s"\n[phones.a]\nnetwork = { cut_every = "100ms" }',
        "[phones.a]\ncount = 3\n{stages}",
    ],
    ids=["by its network", "by a stage"],
)
async def test_a_connection_that_is_torn_off_while_it_shakes_hands_is_a_cut(cut: str) -> None:
    stages = '[[stages]]\nduration = "400ms"\n[[stages]]\nduration = "400ms"\ncut = ["a"]\n'
    source = cut.replace("{stages}", stages)

    async def say_nothing(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for _ in stream:
                pass

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, say_nothing, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        port = listener.socket.getsockname()[1]
        run_stats = await play_and_reconcile(f'grace = "0s"\n{source}', f"ws://127.0.0.1:{port}")
        nursery.cancel_scope.cancel()
    stats = run_stats.group("a")
    assert stats.errors["torn off by the scenario"] >= 2
    assert stats.counts["connect.failed"] == 0
