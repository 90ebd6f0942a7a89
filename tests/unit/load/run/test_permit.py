"""What an agent lets a run do, and how a schedule is split among generators."""

from __future__ import annotations

from pathlib import Path

import attrs
import msgspec
import pytest
import trio

from relay.load.actors.allowance import CATCH_UP_SECONDS, Allowance, LimitReached
from relay.load.actors.attacks import PINGS
from relay.load.actors.engine import Share, make_actors
from relay.load.actors.frames.payloads import TRACE_FORMAT, PayloadFactory, TraceFrame
from relay.load.actors.network.endpoint import Endpoint
from relay.load.actors.run_context import RunContext
from relay.load.actors.script import BadScript, read_script
from relay.load.actors.sent_files import NotSent, SentFiles
from relay.load.measures.reconciliation.integrity import MARK_SIZE
from relay.load.run.agents.permit import (
    MAX_SCENARIO_BYTES,
    NotPermitted,
    address_of,
    allowance_for,
    check_assignment,
    connections_of,
    peak_rate,
)
from relay.load.run.wire import Permit
from relay.load.run.worker import make_context
from relay.load.scenario.parsing import parse_scenario
from relay.load.scenario.schedule import Timeline
from tests.unit.load.run.test_wire import ASSIGNMENT

SOURCE = """
duration = "10s"
[phones.doors]
count = 7
fps = 10
arrival = { poisson = "2/s" }
[viewers.homes]
watch = "doors"
count = 11
arrival = { over = "5s" }
[services.alarm]
watch = "doors"
rate = "3/s"
"""
PERMIT = Permit(targets=frozenset({"relay.test:3000"}), max_connections=1000, max_rate=1000)
ASKED = msgspec.structs.replace(
    ASSIGNMENT, source=SOURCE, shares=[Share()], files=SentFiles(), permit=PERMIT
)


def timeline(source: str = SOURCE) -> Timeline:
    return Timeline(parse_scenario(source, "test.toml", Path()))


@pytest.mark.parametrize("of", [1, 2, 3, 5, 40])
def test_all_shares_together_are_the_whole_schedule_once(of: int) -> None:
    def played(worker: int, of: int) -> list[tuple[str, int, float, float, tuple[float, ...]]]:
        context = RunContext(timeline(), Endpoint("ws://x", ("t",)), "abcd1234")
        actors = make_actors(context, Share(worker=worker, of=of), PayloadFactory(1))
        return [
            (
                *(actor.name, actor.number, actor.presence.join, actor.presence.leave),
                tuple(getattr(actor, "_due", ())) if actor.is_phone else (),
            )
            for actor in actors
        ]

    alone = sorted(played(0, 1))
    assert sorted(each for worker in range(of) for each in played(worker, of)) == alone
    assert len(alone) == 19


@pytest.mark.parametrize("of", [1, 2, 7])
def test_the_plans_of_all_shares_add_up(of: int) -> None:
    shares = [Share(worker=worker, of=of) for worker in range(of)]
    assert sum(connections_of(timeline(), each) for each in shares) == 19
    whole = peak_rate(timeline(), Share())
    assert 7 * 10 + 3 < whole <= 7 * 10 + 3 + 19
    assert whole <= sum(peak_rate(timeline(), each) for each in shares)


def test_layers_cuts_and_stages_are_in_the_plan() -> None:
    stages = """
[[stages]]
duration = "5s"
[[stages]]
duration = "5s"
cut = ["doors"]
[stages.change.doors]
fps = 20
"""
    layers = 'layers = [{ id = "l", size = "1KiB" }, { id = "m", size = "2KiB" }]\n'
    phones = f"[phones.doors]\ncount = 4\nfps = 10\n{layers}"
    assert peak_rate(timeline(f"duration = '5s'\n{phones}"), Share()) == 4 * 10 * 2 + 4
    assert peak_rate(timeline(phones + stages), Share()) == 4 * 20 * 2 + 4


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("ws://relay.test:3000", "relay.test:3000"),
        ("wss://Relay.Test/path", "relay.test:443"),
        ("ws://[::1]:3000", "[::1]:3000"),
        ("http://10.0.0.1", "10.0.0.1:80"),
    ],
)
def test_a_target_has_one_address(url: str, address: str) -> None:
    assert address_of(url) == address


@pytest.mark.parametrize(
    "url", ["", "relay.test", "ws://", "ws://a:99999", "ws://a:0", "ws://a@relay.test:3000"]
)
def test_what_has_no_address_is_no_target(url: str) -> None:
    with pytest.raises(NotPermitted):
        address_of(url)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"endpoint": Endpoint("ws://other.test:3000", ("t",))},
            "other.test:3000 is not a --target",
        ),
        ({"endpoint": Endpoint("ws://relay.test:3001", ("t",))}, "relay.test:3001 is not"),
        ({"endpoint": Endpoint("ws://relay.test:3000@x", ("t",))}, "has no address"),
        (
            {"endpoint": Endpoint({"a": "ws://relay.test:3000", "b": "ws://b:1"}, ("t",))},
            "b:1 is not",
        ),
        ({"endpoint": Endpoint({}, ("t",))}, "no target"),
        ({"endpoint": Endpoint("ws://relay.test:3000", ())}, "no token"),
        ({"endpoint": Endpoint("ws://relay.test:3000", ("t",) * 200_001)}, "tokens"),
        ({"source": "#" * (MAX_SCENARIO_BYTES + 1)}, "larger than 1 MiB"),
        ({"shares": []}, "shares"),
        ({"shares": [Share(), Share()]}, "shares"),
        ({"shares": [Share(worker=2, of=2)]}, "shares"),
        ({"shares": [Share(worker=0, of=10**9)]}, "shares"),
        ({"run": "../../etc"}, "no id"),
        ({"files": SentFiles(script=b"import os")}, "--allow-script [0-9a-f]{64}"),
    ],
)
def test_an_agent_refuses_what_it_was_not_started_for(
    changes: dict[str, object], words: str
) -> None:
    check_assignment(ASKED, PERMIT, 1)
    with pytest.raises(NotPermitted, match=words):
        check_assignment(msgspec.structs.replace(ASKED, **changes), PERMIT, 1)


def test_a_script_runs_if_its_digest_was_named() -> None:
    files = SentFiles(script=b"async def a(actor): ...\nACTORS = {'a': (a, 3)}")
    assert files.script_digest is not None
    permit = attrs.evolve(PERMIT, scripts=frozenset({files.script_digest}))
    check_assignment(msgspec.structs.replace(ASKED, files=files), permit, 1)
    assert read_script("actors.py", files.script)["a"][1] == 3
    with pytest.raises(BadScript, match="SyntaxError"):
        read_script("actors.py", b"1 +")
    with pytest.raises(NotPermitted, match="the script was not sent"):
        make_context(msgspec.structs.replace(ASKED, source=f"script = 'actors.py'\n{SOURCE}"))


@pytest.mark.parametrize(
    ("permit", "words"),
    [
        (attrs.evolve(PERMIT, max_connections=18), "19 connections are more than its --max-conn"),
        (attrs.evolve(PERMIT, max_rate=60), "messages in a second are more than its --max-rate"),
    ],
)
async def test_a_plan_above_the_caps_is_refused_before_the_run(permit: Permit, words: str) -> None:
    with pytest.raises(NotPermitted, match=words):
        make_context(msgspec.structs.replace(ASKED, permit=permit))


@pytest.mark.parametrize("keys", ["kind = 'flood'", "kind = 'pings'\nevery = '0s'"])
async def test_clients_that_send_without_pause_are_refused(keys: str) -> None:
    source = f"{SOURCE}[hostiles.h]\n{keys}\ncount = 0"
    with pytest.raises(NotPermitted, match="floods, and pings without pause"):
        make_context(msgspec.structs.replace(ASKED, source=source))


async def test_each_ping_of_a_burst_is_a_message() -> None:
    """Bursts would else be a way around the cap."""
    source = f"{SOURCE}[hostiles.h]\nkind = 'pings'\nevery = '1ms'"
    assert peak_rate(timeline(source), Share()) > PINGS * 1000
    with pytest.raises(NotPermitted, match="are more than its --max-rate of 1000"):
        make_context(msgspec.structs.replace(ASKED, source=source))


async def test_the_plan_of_the_last_process_is_that_of_the_groups_in_the_background() -> None:
    source = SOURCE.replace("[viewers.homes]", "[viewers.homes]\nbackground = true")
    shares = [Share(worker=worker, of=3) for worker in range(3)]
    of_all = timeline(f"workers = 2\n{source}")
    assert [connections_of(of_all, share) for share in shares] == [5, 3, 11]
    assert peak_rate(of_all, shares[2]) < 5  # they only join


async def test_a_scenario_that_fills_the_memory_is_refused() -> None:
    groups = "".join(f"[phones.p{number}]\ncount = 100000\n" for number in range(11))
    shares = [Share(worker=0, of=4096)]
    with pytest.raises(NotPermitted, match="more than 1000000 actors"):
        make_context(msgspec.structs.replace(ASKED, source=groups, shares=shares))


async def test_the_processes_of_an_agent_share_its_caps() -> None:
    permit = attrs.evolve(PERMIT, max_connections=24, max_rate=200)
    allowed = [
        allowance_for(
            msgspec.structs.replace(
                ASKED,
                permit=permit,
                process=process,
                shares=[Share(worker=0, of=2), Share(worker=1, of=2)],
            ),
            timeline(),
        )
        for process in range(2)
    ]
    connections = [each.connections for each in allowed if each is not None]
    assert sum(connections) <= 24
    assert all(each >= 9 for each in connections)
    assert sum(each.rate for each in allowed if each is not None) == pytest.approx(200)
    assert allowance_for(msgspec.structs.replace(ASKED, permit=None), timeline()) is None


@pytest.mark.mock_clock
async def test_messages_above_the_rate_end_the_run_and_are_not_delayed() -> None:
    allowance = Allowance(connections=2, rate=10)
    for _ in range(int(10 * CATCH_UP_SECONDS)):
        allowance.spend()
    with pytest.raises(LimitReached, match="more than 10 messages a second, its --max-rate"):
        allowance.spend()
    await trio.sleep(1)
    for _ in range(10):
        allowance.spend()
    with pytest.raises(LimitReached):
        allowance.spend()


@pytest.mark.mock_clock
async def test_a_connection_that_ends_makes_room_for_another() -> None:
    allowance = Allowance(connections=2, rate=100)
    with allowance.connection():
        for _ in range(3):
            with allowance.connection():
                pass
        with (
            allowance.connection(),
            pytest.raises(LimitReached, match="more than 2 connections"),
            allowance.connection(),
        ):
            pass


def trace() -> bytes:
    lines = [{"format": TRACE_FORMAT}, TraceFrame(0.0, 100), TraceFrame(0.5, 200)]
    return b"".join(msgspec.json.encode(each) + b"\n" for each in lines)


def test_an_agent_opens_no_file_that_a_scenario_names(tmp_path: Path) -> None:
    (tmp_path / "door.trace").write_bytes(trace())
    recording = f"[phones.p]\nframes = {{ recording = '{tmp_path / 'door.trace'}' }}"
    video = f"[phones.p]\nframes = {{ video = '{tmp_path / 'film.mp4'}' }}"
    for source in (recording, video):
        context = make_context(msgspec.structs.replace(ASKED, source=source, permit=None))
        with pytest.raises(NotSent):
            make_actors(context, Share(), PayloadFactory(1, context.files))


def test_what_was_sent_is_played_like_a_file() -> None:
    source = "[phones.p]\nframes = { recording = 'a.trace' }\n[phones.q]\nframes.video = 'b.mp4'"
    files = SentFiles({"a.trace": trace()}, {"b.mp4": [b"one", b"two"]})
    context = make_context(msgspec.structs.replace(ASKED, source=source, files=files, permit=None))
    p, q = make_actors(context, Share(), PayloadFactory(1, context.files))
    bodies = [p.payloads.body(n, 0, is_delta=False) for n in range(2)]  # type: ignore[attr-defined]
    assert list(map(len, bodies)) == [100 - MARK_SIZE, 200 - MARK_SIZE]
    assert q.payloads.body(3, 0, is_delta=False) == b"two"  # type: ignore[attr-defined]
