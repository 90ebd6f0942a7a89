"""Examples from life, shortened: links of real drives, apps that pause, mornings, crowds.

Their checks of ages are for a machine that does nothing else; what must hold on any is checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.cli.load.scenario import EXAMPLES
from relay.load.actors.network.endpoint import Endpoint
from relay.load.measures.builtin_checks import INTEGRITY_COUNTS
from relay.load.measures.stats import RunStats
from relay.load.record_link import LinkRecorder, LinkRecordOptions, measure_link
from relay.load.scenario.link_trace import LinkHead, parse_link, write_link
from relay.load.scenario.parsing import parse_scenario
from tests.integration.accounts import Accounts
from tests.integration.peers import new_stream_id
from tests.integration.relay_process import RelayProcess, start_relay
from tests.integration.slow_proxy import slow_link
from tests.load_play import play_toml


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--profile", "load", database_url=database_url) as relay:
        yield relay


def shortened(example: str, seconds: float, count: float = 1.0) -> str:
    """An example that takes so many seconds, with this part of its clients. All of its durations
    are shortened alike, but those of links."""
    source = (EXAMPLES / f"{example}.toml").read_text()
    part = seconds / parse_scenario(source, f"{example}.toml", Path()).length
    keys = r"(duration|over|doubles_every|every|lasts) = \"(\d+)(s|min)\""

    def shorter(found: re.Match[str]) -> str:
        long = int(found[2]) * (60 if found[3] == "min" else 1)
        return f'{found[1]} = "{long * part * 1000:.0f}ms"'

    def fewer(found: re.Match[str]) -> str:
        return f"count = {max(1, round(int(found[1]) * count))}"

    return re.sub(r"\bcount = (\d+)", fewer, re.sub(keys, shorter, source))


async def play_example(source: str, relay: RelayProcess, accounts: Accounts) -> RunStats:
    url = relay.url.replace("http", "ws", 1)
    endpoint = Endpoint(url, (accounts.session("ann"),), (accounts.service("*"),))
    run_stats, _ = await play_toml(source, endpoint, run=new_stream_id()[-8:])
    counts = run_stats.total().counts
    assert not any(counts[fault] for fault in INTEGRITY_COUNTS)
    assert counts["auth.failed"] == counts["connect.failed"] == 0
    assert counts["closes.unexpected"] == 0
    return run_stats


async def test_a_fleet_comes_on_air_by_its_curve(relay: RelayProcess, accounts: Accounts) -> None:
    source = shortened("fleet-morning", 3, count=0.2)
    run_stats = await play_example(source, relay, accounts)
    assert run_stats.group("vans").counts["auth.done"] == 24
    assert run_stats.group("vans").counts["sent"] > 10
    assert run_stats.group("dispatch").counts["received"] > 10


async def test_a_crowd_doubles_until_everybody_watches(
    relay: RelayProcess, accounts: Accounts
) -> None:
    run_stats = await play_example(shortened("viral", 3, count=0.125), relay, accounts)
    crowd = run_stats.group("crowd")
    assert crowd.counts["auth.done"] == 32
    assert crowd.time("first_frame").count == 32


@pytest.mark.slow
async def test_apps_pause_and_resume(relay: RelayProcess, accounts: Accounts) -> None:
    run_stats = await play_example(shortened("pockets", 4), relay, accounts)
    groups = {name: stats.counts for name, stats in run_stats.groups.items()}
    # Four seconds are three pauses and more.
    assert groups["tidy"]["connect.done"] >= 12
    assert groups["back"]["connect.done"] >= 18
    assert groups["tidy"]["reconnects"] == 0  # it comes back, it was not torn off
    assert groups["quiet"]["connect.done"] == groups["frozen"]["connect.done"] == 3
    # Each misses at least its pictures of the pauses.
    for name, most in (("tidy", 0.8), ("quiet", 0.8), ("frozen", 0.8)):
        actors = 6 if name == "tidy" else 3
        assert 0 < groups[name]["sent"] < most * 40 * actors
    assert groups["home"]["received"] > 30


@pytest.mark.slow
async def test_links_of_real_drives_slow_down_those_who_have_them_alone(
    relay: RelayProcess, accounts: Accounts
) -> None:
    run_stats = await play_example(shortened("commuters", 4), relay, accounts)
    home, umts = run_stats.group("home"), run_stats.group("umts")
    assert home.counts["received"] > umts.counts["received"]
    assert home.counts["missed"] < umts.counts["missed"]


@pytest.mark.slow
async def test_a_link_is_recorded_over_a_relay_and_shapes_a_scenario(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path
) -> None:
    token = accounts.session("ann")
    async with slow_link(relay.url, up=60_000, down=100_000) as narrow:
        url = narrow.url.replace("http", "ws", 1)
        recorder = LinkRecorder(url, token, LinkRecordOptions(seconds=2.0))
        length = await measure_link(recorder)
    steps = recorder.steps(length)
    rates = [step.up for step in steps if step.up]
    assert rates
    assert max(rates) < 2 * 60_000 * 8  # it was not measured beside the link
    content = write_link(LinkHead(length=length), steps)
    assert parse_link(content, "x").steps == tuple(steps)
    (tmp_path / "train.link").write_bytes(content)
    source = """
        duration = "2s"
        [phones.p]
        fps = 20
        frames = "2KiB"
        [phones.thin]
        fps = 20
        frames = "32KiB"
        link = { recording = "train.link" }
        [viewers.v]
        watch = "p"
        """
    endpoint = Endpoint(relay.url.replace("http", "ws", 1), (token,))
    run_stats, _ = await play_toml(source, endpoint, run=new_stream_id()[-8:], folder=tmp_path)
    assert run_stats.group("p").counts["sent"] > run_stats.group("thin").counts["sent"]
