"""`relay load` sends its figures to a real Prometheus and to a receiver of OTLP while it runs.

It is not disturbed when these fail.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import trio

from relay.cli.main import main
from relay.load.measures.results import read_result
from tests.integration.accounts import Accounts
from tests.integration.load_command import SHORT, against, finish, start
from tests.integration.proxies import free_port
from tests.integration.relay_process import RelayProcess, start_relay, until
from tests.integration.web_server import open_web_server, says, silence
from tests.protobuf import fields, only

PROMETHEUS = shutil.which("prometheus")


@pytest.fixture(scope="module")
def relay(database_url: str) -> Iterator[RelayProcess]:
    with start_relay("--profile", "load", database_url=database_url) as relay:
        yield relay


@contextmanager
def prometheus(folder: Path) -> Iterator[str]:
    port = free_port()
    (folder / "prometheus.yml").write_text("")
    command = [
        *(str(PROMETHEUS), "--web.enable-remote-write-receiver"),
        *(f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def is_ready(server: str) -> bool:
    try:
        with urllib.request.urlopen(f"{server}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def asked(server: str, query: str) -> list[dict[str, Any]]:
    url = f"{server}/api/v1/query?{urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return result


@pytest.mark.skipif(PROMETHEUS is None, reason="prometheus is not installed")
@pytest.mark.slow
async def test_prometheus_and_a_collector_get_all_figures_while_it_runs(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    lines = tmp_path / "r.json"
    scenario = against(relay, accounts, tmp_path, SHORT.replace('"1s"', '"2s"', 1))
    async with open_web_server(says(b"")) as collector:
        with prometheus(tmp_path) as server:
            await until(lambda: is_ready(server))
            sinks = ("--remote-write", server, "--otlp", collector.url)
            process = start(folder, scenario, *sinks, "--json", str(lines))
            code, output, errors = await trio.to_thread.run_sync(finish, process)
            assert (code, errors) == (0, ""), output
            assert "metrics do not reach" not in output
            frames = asked(server, 'relay_load_frames_total{group="fast",outcome="received"}[5m]')
            ages = asked(server, 'relay_load_frame_age_seconds{group="fast",quantile="0.99"}[5m]')
            assert asked(server, "relay_load_connections") == []  # the series have ended
    result, seconds = read_result(lines)
    received = result.groups["fast"].counts["received"]
    assert len(frames) == len(ages) == 1
    labels = {"job": "relay-load", "scenario": "short", "group": "fast", "outcome": "received"}
    assert frames[0]["metric"].items() >= labels.items()
    values = [float(value) for _, value in frames[0]["values"]]
    assert len(values) == len(seconds)
    assert values == sorted(values)
    assert values[-1] == received
    assert float(ages[0]["values"][0][1]) == pytest.approx(seconds[0].groups["fast"].age["p99"])
    assert {each.line for each in collector.requests} == {"POST /v1/metrics HTTP/1.1"}
    assert {each.headers["content-type"] for each in collector.requests} == {
        "application/x-protobuf"
    }
    assert len(collector.requests) == len(seconds)
    assert exported_frames(collector.requests[-1].body)["fast", "received"] == received


def exported_frames(body: bytes) -> dict[tuple[str, str], float]:
    """By group and outcome. Numbers of fields are those of `metrics.proto`."""
    (scope,) = fields(only(fields(body), 1))[2]
    for metric in fields(scope)[2]:
        found = fields(metric)
        if found[1] == [b"relay_load.frames"]:
            points = [fields(point) for point in fields(only(found, 7))[1]]
            return {
                (attributes["group"], attributes["outcome"]): only(point, 4)
                for point in points
                if (attributes := dict(map(attribute, point[7])))
            }
    raise AssertionError("there are no frames")


def attribute(encoded: bytes) -> tuple[str, str]:
    found = fields(encoded)
    return only(found, 1).decode(), only(fields(only(found, 2)), 1).decode()


@pytest.mark.slow
async def test_sinks_that_fail_are_said_once_and_cost_the_run_nothing(
    relay: RelayProcess, accounts: Accounts, tmp_path: Path, folder: Path
) -> None:
    scenario = against(relay, accounts, tmp_path, SHORT.replace('"1s"', '"2s"', 1))
    refuses = says(b"no\x1b such\n tenant", "404 Not Found")
    async with open_web_server(silence) as silent, open_web_server(refuses) as refusing:
        place = silent.url.removeprefix("http://")
        sinks = ("--remote-write", refusing.url, "--otlp", f"http://me:secret@{place}/otlp")
        process = start(folder, scenario, *sinks)
        code, output, errors = await trio.to_thread.run_sync(finish, process)
        assert (code, errors) == (0, ""), output
        assert len(refusing.requests) >= 2
        assert silent.requests[0].line == "POST /otlp HTTP/1.1"
        assert silent.requests[0].headers["authorization"] == "Basic bWU6c2VjcmV0"
    summary = output.partition("worker, ")[2]
    refused, silence_noted = re.findall(r"metrics do not reach (.*)", summary)
    assert refused == f"{refusing.url}/api/v1/write: status 404: no such tenant"
    assert silence_noted.startswith(f"{silent.url}/otlp: no answer within ")
    assert "secret" not in output


@pytest.mark.parametrize("option", ["--remote-write", "--otlp"])
@pytest.mark.parametrize(
    "url", ["localhost:9090", "ftp://x", "http://", "http://x:port", "http://[x"]
)
def test_an_address_that_is_none_is_said_before_the_run(
    option: str, url: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["load", "smoke", option, url]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(rf"relay: {option}: expected an address such as http://\S+\n", errors)
