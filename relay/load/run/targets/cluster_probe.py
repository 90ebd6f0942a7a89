"""Checks before a run that several targets are one cluster."""

from __future__ import annotations

import ssl

import trio

from relay.client import DialFailed, Disconnected, Frame, ServerError, connect
from relay.client.connection.messages import Unreadable
from relay.load.actors.network.endpoint import Endpoint
from relay.load.run.targets.target_reports import TargetFailed

CLUSTER_PROBE_TIMEOUT = 5.0
"""Seconds for a frame from one target to the next."""
HELP = "start them with the same database_url, and with cluster_bind where they are on machines"


async def check_cluster(endpoint: Endpoint, run_id: str) -> None:
    """Send a frame from each target to the next one; `TargetFailed` says what was seen."""
    names = list(endpoint.urls)
    for number, name in enumerate(names):
        following = names[(number + 1) % len(names)]
        await _check_pair(endpoint, name, following, f"load-{run_id}-probe-{number}")


async def _check_pair(endpoint: Endpoint, here: str, there: str, stream: str) -> None:
    """Produce a stream at one target and watch it at another."""
    token, at = endpoint.token(0), here
    seen = trio.Event()

    async def watch() -> None:
        nonlocal at
        at = there
        async with connect(endpoint.urls[there], token, tls=_tls(endpoint, there)) as viewer:
            await viewer.subscribe(stream)
            async for event in viewer:
                if isinstance(event, Frame):
                    seen.set()
                    return

    try:
        with trio.move_on_after(CLUSTER_PROBE_TIMEOUT):
            async with connect(endpoint.urls[here], token, tls=_tls(endpoint, here)) as phone:
                await phone.register(stream)
                await phone.send_frame(b"is this one cluster?")
                await watch()
    except DialFailed as failure:
        raise TargetFailed(f"the target {at} cannot be reached: {failure}") from None
    except ServerError as error:
        if at == there and error.code == "AUTH_FAILED":
            why = f"{there} refuses a token that {here} accepts"
            raise TargetFailed(f"these targets are no cluster: {why}; {HELP}") from None
        raise TargetFailed(f"the target {at} refuses a client: {error}") from None
    except (Disconnected, Unreadable) as problem:
        raise TargetFailed(f"the target {at} does not serve as a relay should: {problem}") from None
    if not seen.is_set():
        why = f"{there} does not show a stream whose phone is at {here}"
        raise TargetFailed(f"these targets are no cluster: {why}; {HELP}")


def _tls(endpoint: Endpoint, name: str) -> ssl.SSLContext | None:
    return endpoint.tls_verification.context_for(endpoint.urls[name])
