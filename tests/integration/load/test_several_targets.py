"""`relay load` against several relays that serve together, or do not."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from relay.load.actors.network.endpoint import Endpoint
from relay.load.measures.reconciliation.ledger import TargetLedger, TargetTotals, compare_ledger
from relay.load.measures.results import read_result
from relay.load.run.targets.cluster_probe import check_cluster
from relay.load.run.targets.target_reports import TargetFailed
from relay.load.run.targets.targets import open_targets
from relay.load.run.tokens import find_endpoint
from relay.load.scenario.parsing import parse_scenario
from tests.integration.accounts import Accounts
from tests.integration.load_command import assert_nothing_is_left, finish, start, write
from tests.integration.lying_relay import Lies, open_liar
from tests.integration.relay_process import RelayProcess, start_relay
from tests.load_play import play_toml

CLUSTER = ("--cluster-bind", "127.0.0.1:0", "--profile", "load")
CLIENTS = """
lateness = "5s" # this machine may be busy with other tests
check = ["frame_age.p99 < 5s", "received > 20", "alerts.accepted > 0"]
[phones.doors]
count = 3
fps = 20
frames = "4KiB"
expect_closes = [4012]
reconnect = { after = "100ms", target = "next" }
[viewers.homes]
watch = "doors"
count = 6
expect_closes = [4012]
reconnect = { after = "100ms", target = "next" }
[services.watcher]
watch = "doors"
rate = "10/s"
target = "a"
"""


@pytest.fixture(scope="module")
def nodes(database_url: str) -> Iterator[list[RelayProcess]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(start_relay(*CLUSTER, database_url=database_url)) for _ in range(2)
        ]


@pytest.mark.slow
def test_relays_that_it_starts_serve_together_also_when_one_ends(
    folder: Path, tmp_path: Path
) -> None:
    targets = "".join(f"[targets.{name}]\nstart = true\n" for name in "ab")
    stages = "[[stages]]\nduration = '1500ms'\n[[stages]]\nduration = '2s'\ndrain = ['b']\n"
    lines, report = tmp_path / "r.json", tmp_path / "r.html"
    scenario = write(tmp_path, f"{CLIENTS}{targets}{stages}")
    code, output, errors = finish(
        start(folder, scenario, "--json", str(lines), "--report", str(report))
    )
    assert (code, errors) == (0, ""), output
    assert "b drains\n" in output
    result, seconds = read_result(lines)
    assert set(result.targets) == {"a", "b"}
    counted = result.targets["a"].counted
    assert counted is not None
    assert counted["hop.received"] > 10 < counted["hop.written"]
    compared = {line.target for line in result.ledger if line.what.startswith("gaps of viewers")}
    assert compared == {"a"}  # what b counted last nobody knows
    assert set().union(*(second.targets for second in seconds)) == {"a", "b"}
    assert "<h2>Targets</h2>" in report.read_text()
    assert_nothing_is_left(folder)


@pytest.mark.slow
async def test_a_relay_that_is_restarted_has_its_address_again_and_used_no_less(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    source = "[targets.a]\nstart = true\n[targets.b]\nstart = true\n[phones.p]"
    scenario = parse_scenario(source, "mine.toml", folder)
    async with open_targets(scenario, is_mine=False) as targets:
        target = targets.by_name["b"]
        events: list[str] = []
        target.on_change = events.append
        await target.begin()
        assert target.relay is not None
        before, pid, url = target.usage(), target.relay.pid, target.url
        await target.restart()
        assert target.relay.pid != pid
        assert targets.urls["b"] == url
        await check_cluster(await find_endpoint(scenario, targets), "abcd1234")
        ledger, after = await target.ledger(), target.usage()
        assert events == ["drains", "has ended", "serves again"]
        assert ledger.totals.accepted == 1  # by the new one
        assert not ledger.is_complete
        assert before is not None
        assert after is not None
        assert after.cpu_seconds > before.cpu_seconds
        # A run that ends while a relay drains must not leave it, nor end its database first.
        pid = target.relay.pid
        with trio.CancelScope() as ending:
            target.on_change = lambda _words: ending.cancel()
            await target.drain()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert_nothing_is_left(folder)


@pytest.mark.slow
def test_relays_that_run_are_named_on_the_command_line(
    nodes: list[RelayProcess], accounts: Accounts, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text(accounts.session("ann"))
    (tmp_path / "service").write_text(accounts.service("*"))
    (tmp_path / "operator").write_text(accounts.service(operate=True))
    tokens = "[tokens]\nfile = 'tokens'\nservice_file = 'service'\noperator_file = 'operator'\n"
    targets = "".join(
        f"[targets.{name}]\nurl = 'ws://localhost:1'\nledger = true\n" for name in "ab"
    )
    lines = tmp_path / "r.json"
    scenario = write(tmp_path, f"duration = '1s'\n{CLIENTS}{targets}{tokens}")
    first, second = (node.url for node in nodes)
    code, output, errors = finish(
        start(
            *(folder, scenario, "--target", f"b={second}", "--target", first),
            *("--json", str(lines), "--workers", "2"),
        )
    )
    assert (code, errors) == (0, ""), output
    assert "ok   the relay's ledger agrees" in output
    result, _ = read_result(lines)
    assert result.targets["a"].clients.counts["alerts.accepted"] > 0
    assert "alerts.accepted" not in result.targets["b"].clients.counts
    assert {line.target for line in result.ledger} == {"a", "b", ""}
    assert [line for line in result.ledger if line.what.startswith("frames between nodes: rec")]


@pytest.mark.slow
def test_relays_with_one_database_that_are_no_nodes_are_no_cluster(
    nodes: list[RelayProcess],
    database_url: str,
    accounts: Accounts,
    folder: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "tokens").write_text(accounts.session("ann"))
    clients = CLIENTS.replace('target = "a"', "")
    scenario = write(tmp_path, f"duration = '1s'\n{clients}[tokens]\nfile = 'tokens'\n")
    with start_relay("--profile", "load", database_url=database_url) as alone:
        code, output, _ = finish(
            start(folder, scenario, "--target", nodes[0].url, "--target", alone.url)
        )
    assert code == 3
    assert (
        "could not run: these targets are no cluster: b does not show a stream whose phone is at a"
        in output
    )


async def test_targets_of_which_one_refuses_the_token_of_the_other_are_no_cluster() -> None:
    async with open_liar(Lies()) as one, open_liar(Lies(refuses_tokens=True)) as other:
        with pytest.raises(TargetFailed) as caught:
            await check_cluster(Endpoint({"a": one.url, "b": other.url}, ("t",)), "abcd1234")
    assert "no cluster: b refuses a token that a accepts; start them with the same" in str(
        caught.value
    )


async def test_a_target_that_does_not_answer_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with open_liar(Lies()) as liar:
        endpoint = Endpoint({"a": liar.url, "b": f"ws://127.0.0.1:{port}"}, ("t",))
        with pytest.raises(TargetFailed) as caught:
            await check_cluster(endpoint, "abcd1234")
    words = f"the target b cannot be reached: cannot connect to 127.0.0.1:{port}: "
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(("dropped", "agrees"), [(True, True), (False, False)])
async def test_a_node_that_drops_frames_must_say_so(*, dropped: bool, agrees: bool) -> None:
    source = """
        duration = "1s"
        [targets.a]
        url = "ws://localhost:1"
        [targets.b]
        url = "ws://localhost:2"
        [phones.p]
        fps = 100
        frames = "2KiB"
        target = "b"
        [viewers.v]
        watch = "p"
        encoding = "json"
        target = "b"
        """
    async with open_liar(Lies(lose_every=10, admits=True)) as liar:
        endpoint = Endpoint({"a": "ws://localhost:1", "b": liar.url}, ("t",))
        run_stats, _ = await play_toml(source, endpoint)
        lost = liar.frames // 10
        totals = TargetTotals(
            accepted=liar.frames,
            offered=liar.frames,
            written=liar.frames - lost * dropped,
            dropped=lost * dropped,
        )
    assert lost > 3
    stats = run_stats.target("b")
    lines = compare_ledger(TargetLedger(target="b", totals=totals), stats, {})
    wrong = [line.what for line in lines if not line.agrees]
    assert wrong == ([] if agrees else ["gaps of viewers: dropped here, lost on the way here"])
    assert "a" not in run_stats.targets
