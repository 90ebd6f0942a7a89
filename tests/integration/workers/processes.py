"""The worker processes of a relay, as they are seen from outside."""

from __future__ import annotations

import re
import subprocess

from tests.integration.relay_process import RelayProcess, until

WORKER_MODULE = "relay.workers.worker"


def workers_of(relay: RelayProcess) -> list[int]:
    """The process ids of the workers."""
    shown = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], check=True, capture_output=True
    )
    found = (line.split(None, 2) for line in shown.stdout.decode().splitlines())
    return [
        int(pid)
        for pid, parent, command in found
        if int(parent) == relay.pid and WORKER_MODULE in command
    ]


def is_running(pid: int) -> bool:
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False)
    return bool(shown.stdout.strip()) and not shown.stdout.strip().startswith(b"Z")


async def metric(relay: RelayProcess, sample: str) -> float:
    text = (await relay.get("/metrics")).body.decode()
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    assert found, sample
    return float(found[1])


async def until_ready(relay: RelayProcess, workers: int = 2) -> None:
    async def ready() -> bool:
        return await metric(relay, 'relay_workers{state="ready"}') == workers

    await until(ready)
