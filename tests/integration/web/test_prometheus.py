"""A real Prometheus reads the metrics, answers the dashboard, and rings the documented alarms."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import trio
import yaml

from tests.integration.accounts import Accounts
from tests.integration.peers import login, new_stream_id
from tests.integration.proxies import free_port
from tests.integration.relay_process import PROJECT, start_relay, until

PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
pytestmark = pytest.mark.skipif(
    PROMETHEUS is None or PROMTOOL is None, reason="prometheus is not installed"
)
RULES = PROJECT / "docs" / "prometheus-rules.yml"
DASHBOARD = json.loads((PROJECT / "docs" / "grafana.json").read_text("utf-8"))
ALARMS = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    for rule in group["rules"]
}

PLACE = {"job": "relay", "instance": "here:3000"}
BY_INSTANCE = {"instance": "here:3000"}

# By alarm: series in which it rings, with their values for each minute; series of a relay that is
# well; and its labels. `0+60x40` is 0, 60, 120 and so on, `1x40` is 1 all the time.
SERIES: dict[str, tuple[dict[str, str], dict[str, str], dict[str, str]]] = {
    "RelayDown": ({"up": "0x40"}, {"up": "1x40"}, PLACE),
    "RelayServiceFailed": (
        {'relay_service_state{service="dispatch",state="failed"}': "1x40"},
        {'relay_service_state{service="dispatch",state="failed"}': "0x40"},
        {**PLACE, "service": "dispatch", "state": "failed"},
    ),
    "RelayServiceRestarts": (
        {'relay_service_restarts_total{service="dispatch"}': "0+1x40"},
        {'relay_service_restarts_total{service="dispatch"}': "0+0.1x40"},
        {**PLACE, "service": "dispatch"},
    ),
    "RelayTokensNotVerified": (
        {'relay_auth_attempts_total{outcome="unavailable"}': "0+6x40"},
        {'relay_auth_attempts_total{outcome="failed"}': "0+6x40"},
        BY_INSTANCE,
    ),
    "RelayVerificationSlow": (
        {
            'relay_verification_seconds_bucket{le="1"}': "0+90x40",
            'relay_verification_seconds_bucket{le="2"}': "0+100x40",
            'relay_verification_seconds_bucket{le="+Inf"}': "0+100x40",
        },
        {
            'relay_verification_seconds_bucket{le="1"}': "0+100x40",
            'relay_verification_seconds_bucket{le="+Inf"}': "0+100x40",
        },
        BY_INSTANCE,
    ),
    "RelayAuthFailures": (
        {
            'relay_auth_attempts_total{outcome="failed"}': "0+600x40",
            'relay_auth_attempts_total{outcome="succeeded"}': "0+60x40",
        },
        {
            'relay_auth_attempts_total{outcome="failed"}': "0+60x40",
            'relay_auth_attempts_total{outcome="succeeded"}': "0+600x40",
        },
        BY_INSTANCE,
    ),
    "RelayFramesOld": (
        {
            'relay_frame_age_seconds_bucket{le="0.5"}': "0+40x40",
            'relay_frame_age_seconds_bucket{le="1"}': "0+100x40",
            'relay_frame_age_seconds_bucket{le="+Inf"}': "0+100x40",
        },
        {
            'relay_frame_age_seconds_bucket{le="0.5"}': "0+90x40",
            'relay_frame_age_seconds_bucket{le="+Inf"}': "0+100x40",
        },
        BY_INSTANCE,
    ),
    "RelayBusy": (
        {"process_cpu_seconds_total": "0+58x40"},
        {"process_cpu_seconds_total": "0+30x40"},
        PLACE,
    ),
    "RelayFilesRunOut": (
        {"process_open_fds": "900x40", "process_max_fds": "1000x40"},
        {"process_open_fds": "700x40", "process_max_fds": "1000x40"},
        PLACE,
    ),
    "RelayFull": (
        {'relay_limits_hit_total{limit="connections"}': "0+1x40"},
        {'relay_limits_hit_total{limit="messages"}': "0+1x40"},
        BY_INSTANCE,
    ),
    "RelayAlertsStalled": (
        {"relay_alert_dispatch_stalled_seconds": "0+60x40"},
        {"relay_alert_dispatch_stalled_seconds": "0x40"},
        PLACE,
    ),
    "RelayAlertsUnreadable": (
        {"relay_alerts_unreadable_total": "0+1x40"},
        {"relay_alerts_unreadable_total": "1x40"},
        PLACE,
    ),
    "RelayAuditIncomplete": (
        {"relay_audit_dropped_total": "0+1x40"},
        {"relay_audit_dropped_total": "1x40"},
        PLACE,
    ),
    "RelayNodeUnreachable": (
        {"relay_nodes_unreachable": "1x40"},
        {"relay_nodes_unreachable": "0x40"},
        PLACE,
    ),
    "RelayHopLossy": (
        {
            'relay_hop_frames_total{direction="in",outcome="lost"}': "0+20x40",
            'relay_hop_frames_total{direction="in",outcome="received"}': "0+980x40",
        },
        {
            'relay_hop_frames_total{direction="in",outcome="lost"}': "0+5x40",
            'relay_hop_frames_total{direction="in",outcome="received"}': "0+995x40",
        },
        BY_INSTANCE,
    ),
    "RelayInternalErrors": (
        {'relay_connection_endings_total{ending="internal_error"}': "0+1x40"},
        {'relay_connection_endings_total{ending="client_gone"}': "0+1x40"},
        {**PLACE, "ending": "internal_error"},
    ),
}


def placed(series: str) -> str:
    """With the labels that Prometheus adds."""
    name, _, labels = series.rstrip("}").partition("{")
    inside = ",".join(filter(None, (labels, *(f'{key}="{PLACE[key]}"' for key in PLACE))))
    return f"{name}{{{inside}}}"


def played(series: Mapping[str, str], name: str, rings: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [
            {"series": placed(each), "values": values} for each, values in series.items()
        ],
        "alert_rule_test": [
            {"eval_time": "30m", "alertname": name, "exp_alerts": [rings] if rings else []}
        ],
    }


@pytest.mark.parametrize("name", ALARMS)
def test_an_alarm_rings_when_it_should_and_not_before(name: str, tmp_path: Path) -> None:
    bad, well, labels = SERIES[name]
    severity = ALARMS[name]["labels"]
    summary = ALARMS[name]["annotations"]["summary"]
    for label, value in labels.items():
        summary = summary.replace(f"{{{{ $labels.{label} }}}}", value)
    rings = {"exp_labels": {**labels, **severity}, "exp_annotations": {"summary": summary}}
    file = tmp_path / "test.yml"
    tests = [played(bad, name, rings), played(well, name, None)]
    content = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    file.write_text(yaml.safe_dump(content), "utf-8")
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """The documented settings, but for where things are and how often it looks."""
    port = free_port()
    settings = {
        "global": {"scrape_interval": "250ms", "evaluation_interval": "250ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "relay", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings), "utf-8")
    command = [
        *(str(PROMETHEUS), f"--config.file={folder}/prometheus.yml"),
        *(f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"),
    ]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            yield f"http://127.0.0.1:{port}/api/v1"
        finally:
            process.terminate()


class Refused(Exception):
    """What Prometheus says is wrong."""


def fetch(url: str) -> Any:
    try:
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        with error:  # it is the response, and holds the socket
            raise Refused(error.read().decode()) from None


async def asked(prometheus: str, query: str) -> list[Any]:
    """What a question is answered with, as a list of series."""
    query = query.replace("$__rate_interval", "10s").replace("$instance", ".*")
    assert "$" not in query
    url = f"{prometheus}/query?{urlencode({'query': query})}"
    result: list[Any] = (await trio.to_thread.run_sync(fetch, url))["result"]
    return result


async def has_read(prometheus: str, query: str) -> bool:
    try:
        return bool(await asked(prometheus, query))
    except (OSError, Refused):  # it starts
        return False


async def test_prometheus_reads_what_relay_says_and_answers_the_dashboard(
    database_url: str, accounts: Accounts, tmp_path: Path
) -> None:
    with (
        start_relay("--cluster-bind", "127.0.0.1:0", database_url=database_url) as relay,
        prometheus(tmp_path, f"127.0.0.1:{relay.port}") as server,
    ):
        token, stream_id = accounts.session(), new_stream_id()
        async with login(relay, token) as phone, login(relay, token) as viewer:
            await phone.register(stream_id)
            await viewer.subscribe(stream_id)
            await until(partial(has_read, server, "up == 1"))
            await phone.send_frame(b"a picture")
            await viewer.receive_type("video-frame")
            await until(partial(has_read, server, "rate(relay_frames_written_total[10s]) > 0"))
            for panel in DASHBOARD["panels"]:
                for target in panel.get("targets", []):
                    answer = await asked(server, target["expr"])
                    # Limits that nobody hit and services that never failed have no series yet.
                    assert answer or "limits_hit" in target["expr"] or "restarts" in target["expr"]
        groups = (await trio.to_thread.run_sync(fetch, f"{server}/rules"))["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert {rule["name"]: (rule["health"], rule["state"]) for rule in rules} == dict.fromkeys(
            ALARMS, ("ok", "inactive")
        )
        page = await relay.get("/metrics")
    assert PROMTOOL is not None
    lint = await trio.run_process(
        [PROMTOOL, "check", "metrics"],
        stdin=page.body,
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert (lint.returncode, lint.stdout) == (0, b"")
