"""What an agent lets a run do. An agent checks this itself: it believes no coordinator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from attrs import frozen

from relay.client.dial import DEFAULT_PORTS
from relay.errors import RelayError
from relay.load.actors.allowance import Allowance
from relay.load.actors.attacks import DEFAULT_PING_INTERVAL, PINGS
from relay.load.actors.engine import Share
from relay.load.run.wire import Assignment, Permit
from relay.load.scenario.groups import Group, HostileGroup, PhoneGroup, ServiceGroup
from relay.load.scenario.schedule import Timeline

MAX_SCENARIO_BYTES = 1 << 20
MAX_TOKEN_COUNT = 100_000
MAX_PROCESSES = 64
MAX_SHARES = 4096
MAX_FACTOR = 1e6
MAX_ACTORS = 1_000_000
"""Of a scenario, over all generators: each of them has the times of all in its memory."""


class NotPermitted(RelayError):
    """A coordinator asks for what an agent does not do."""


def address_of(url: str) -> str:
    """`HOST:PORT` of a target's URL, as `--target` has it; `NotPermitted`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        port = DEFAULT_PORTS.get(parts.scheme) if port is None else port
    except ValueError:
        host = port = None
    if not host or not port or "@" in parts.netloc:
        raise NotPermitted("a target has no address such as ws://HOST:PORT")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_assignment(assignment: Assignment, permit: Permit, processes: int) -> None:
    """Check what needs no scenario; `NotPermitted`."""
    if len(assignment.source) > MAX_SCENARIO_BYTES:
        raise NotPermitted(f"the scenario is larger than {MAX_SCENARIO_BYTES >> 20} MiB")
    for url in assignment.endpoint.urls.values():
        address = address_of(url)
        if address not in permit.targets:
            raise NotPermitted(f"{address} is not a --target of this agent")
    if not assignment.endpoint.urls or not assignment.endpoint.tokens:
        raise NotPermitted("there is no target, or no token")
    endpoint = assignment.endpoint
    given = (endpoint.tokens, endpoint.service_tokens, endpoint.hostile_tokens)
    if sum(map(len, given)) > 2 * MAX_TOKEN_COUNT:
        raise NotPermitted(f"more than {MAX_TOKEN_COUNT} tokens")
    if len(assignment.shares) != processes or not all(map(_is_sound, assignment.shares)):
        raise NotPermitted("the shares are not those of this agent's processes")
    if assignment.raised is not None and not 0 < assignment.raised.factor <= MAX_FACTOR:
        raise NotPermitted("the load is multiplied by what is no factor")
    if len(assignment.run) != 8 or not assignment.run.isalnum():
        raise NotPermitted("the run has no id of 8 letters and digits")
    digest = assignment.files.script_digest if assignment.files else None
    if digest is not None and digest not in permit.scripts:
        raise NotPermitted(f"it runs no script but its own: it lacks --allow-script {digest}")


def _is_sound(share: Share) -> bool:
    return 0 <= share.worker < share.of <= MAX_SHARES


@frozen
class Plan:
    """What the schedule of a run needs, as far as it is known before."""

    connections: int
    """At once."""
    rate: float
    """The most messages in a second: frames, alerts, pings and attempts to connect."""


def allowance_for(assignment: Assignment, timeline: Timeline) -> Allowance | None:
    """What the process of this assignment may do; None if there are no caps. `NotPermitted` if the
    plan of all processes of the agent is above its caps."""
    permit = assignment.permit
    if permit is None:
        return None
    scenario = timeline.scenario
    if scenario.script is not None and (assignment.files is None or not assignment.files.script):
        raise NotPermitted("the script was not sent")
    if sum(timeline.most(name) for name in scenario.groups) > MAX_ACTORS:
        raise NotPermitted(f"the scenario has more than {MAX_ACTORS} actors")
    if any(map(_is_unlimited, scenario.groups.values())):
        raise NotPermitted("floods, and pings without pause, send more than any cap allows")
    wanted = [connections_of(timeline, share) for share in assignment.shares]
    if sum(wanted) > permit.max_connections:
        raise NotPermitted(
            f"{sum(wanted)} connections are more than its --max-connections of"
            f" {permit.max_connections}"
        )
    plans = [
        Plan(connections, peak_rate(timeline, share))
        for connections, share in zip(wanted, assignment.shares, strict=True)
    ]
    rate = sum(each.rate for each in plans)
    if rate > permit.max_rate:
        raise NotPermitted(
            f"{rate:.0f} messages in a second are more than its --max-rate of {permit.max_rate:g}"
        )
    own = plans[assignment.process]
    spare_connections = permit.max_connections - sum(wanted)
    return Allowance(
        connections=own.connections + spare_connections // len(plans),
        rate=own.rate + (permit.max_rate - rate) / len(plans),
    )


def connections_of(timeline: Timeline, share: Share) -> int:
    """How many connections a share has at once, at most."""
    return sum(
        _part(timeline, name, timeline.most(name), share) for name in timeline.scenario.groups
    )


def peak_rate(timeline: Timeline, share: Share) -> float:
    """The most messages that a share has in a second: those of all joins in its worst second, in
    the stage with the most. What follows from recordings, scripts and reconnections is not in it.
    """
    joins = _joins(timeline, share)
    peak = 0.0
    for stage, start in enumerate(timeline.starts):
        seconds = range(int(start), int(timeline.stage_end(stage)) + 1)
        steady = sum(
            _part(timeline, name, group.count, share) * _messages_per_second(group)
            for name, group in _groups(timeline, stage)
        )
        peak = max(peak, steady + _most_of(joins, seconds))
    return peak


def _joins(timeline: Timeline, share: Share) -> Counter[int]:
    """How many actors of a share connect, by second: those that join, and those that are cut."""
    joins: Counter[int] = Counter()
    for name in timeline.scenario.groups:
        presences = timeline.presences(name)
        for number in _members(timeline, name, len(presences), share):
            joins.update(int(each.join) for each in presences[number])
        for at in timeline.cuts(name):
            joins[int(at)] += _part(timeline, name, timeline.most(name), share)
    return joins


def _most_of(joins: Counter[int], seconds: Sequence[int]) -> int:
    if len(seconds) < len(joins):
        return max((joins[second] for second in seconds), default=0)
    return max((number for second, number in joins.items() if second in seconds), default=0)


def _groups(timeline: Timeline, stage: int) -> Iterable[tuple[str, Group]]:
    return ((name, timeline.group_in(name, stage)) for name in timeline.scenario.groups)


def _messages_per_second(group: Group) -> float:
    if isinstance(group, PhoneGroup):
        return group.fps * (len(group.layers) or 1) * (group.frames.recording is None)
    if isinstance(group, HostileGroup) and group.kind == "pings":
        return PINGS / (group.every or DEFAULT_PING_INTERVAL)
    return group.rate if isinstance(group, ServiceGroup) else 0.0


def _is_unlimited(group: Group) -> bool:
    """Whether its actors send as fast as the network takes it."""
    return isinstance(group, HostileGroup) and (
        group.kind == "flood" or (group.kind == "pings" and group.every == 0)
    )


def _part(timeline: Timeline, name: str, count: int, share: Share) -> int:
    """How many of so many actors of a group are in a share."""
    return len(_members(timeline, name, count, share))


def _members(timeline: Timeline, name: str, count: int, share: Share) -> range:
    scenario = timeline.scenario
    return share.members(scenario, background=scenario.groups[name].background, count=count)
