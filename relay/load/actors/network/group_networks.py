"""The simulated network of each actor: that of its group, its link, and the pauses of its app.

No I/O but reading the files of links.
"""

from __future__ import annotations

from functools import cached_property
from random import Random

from attrs import define, field

from relay.errors import RelayError
from relay.load.actors.network.shaped_link import is_plain
from relay.load.actors.sent_files import NotSent, SentFiles
from relay.load.scenario.groups import LinkChoice, Network
from relay.load.scenario.link_trace import ChosenLink, parse_link, read_link, read_named_link
from relay.load.scenario.scenario import Scenario
from relay.load.scenario.schedule import Pauses, Timeline
from relay.load.scenario.schema import ScenarioError

FROZEN = Network(bandwidth=0.0, upload=0.0)
"""Nothing passes, and nothing is read ahead."""


def open_link(choice: LinkChoice, scenario: Scenario, files: SentFiles | None = None) -> ChosenLink:
    """Read a link, from `files` if this process may open none; `RelayError`."""
    if choice.name is not None:
        return ChosenLink(read_named_link(choice.name), choice)
    assert choice.recording is not None
    if files is None:
        return ChosenLink(read_link(scenario.path(choice.recording)), choice)
    content = files.links.get(choice.recording)
    if content is None:
        raise NotSent(f"the link {choice.recording} was not sent")
    return ChosenLink(parse_link(content, choice.recording), choice)


def check_links(scenario: Scenario, file: str) -> None:
    """Read all recorded links of a scenario; `ScenarioError` if one cannot be used."""
    timeline = Timeline(scenario)
    for name in scenario.groups:
        for choice in timeline.links(name):
            try:
                open_link(choice, scenario)
            except RelayError as problem:
                raise ScenarioError(f"{file}: {name}.link", str(problem)) from None


@define(eq=False)
class GroupNetworks:
    """The networks of all groups."""

    timeline: Timeline
    files: SentFiles | None = None
    _links: dict[LinkChoice, ChosenLink] = field(factory=dict)
    _pauses: dict[tuple[str, int], Pauses] = field(factory=dict)
    _places: dict[tuple[str, int], float] = field(factory=dict)
    """At which part of its link each actor begins."""

    def open(self) -> None:
        """Read all links, which blocks; `RelayError`."""
        for name in self.timeline.scenario.groups:
            for choice in self.timeline.links(name):
                self._link(choice)

    def is_perfect(self, name: str) -> bool:
        """Whether nothing needs to be simulated for a group at any time."""
        return all(map(is_plain, self._all[name]))

    def is_narrow(self, name: str) -> bool:
        """Whether the group's downloads are limited at any time."""
        return any(network.bandwidth is not None for network in self._all[name])

    def at(self, name: str, number: int, at: float) -> tuple[Network, float]:
        """The network of an actor at a time, and when another one begins; in seconds of the run."""
        group, until = self.timeline.group_at(name, at)
        if group.pauses is not None and group.pauses.connection == "freezes":
            pauses = self._pauses_of(name, number)
            until = min(until, pauses.next_change(at))
            if pauses.is_paused(at):
                return FROZEN, until
        if group.link is None:
            return group.network, until
        link = self._link(group.link)
        place = self._place(name, number) * link.trace.head.length * (not group.link.together)
        network, changes = link.network_at(at + place)
        return network, min(until, changes - place)

    @cached_property
    def _all(self) -> dict[str, list[Network]]:
        """All networks that each group has at any time."""
        found = {}
        for name, group in self.timeline.scenario.groups.items():
            networks = self.timeline.networks(name)
            for choice in self.timeline.links(name):
                networks += self._link(choice).networks
            if group.pauses is not None and group.pauses.connection == "freezes":
                networks.append(FROZEN)
            found[name] = networks
        return found

    def _link(self, choice: LinkChoice) -> ChosenLink:
        found = self._links.get(choice)
        if found is None:
            found = self._links[choice] = open_link(choice, self.timeline.scenario, self.files)
        return found

    def _pauses_of(self, name: str, number: int) -> Pauses:
        key = (name, number)
        if key not in self._pauses:
            self._pauses[key] = self.timeline.pauses(name, number)
        return self._pauses[key]

    def _place(self, name: str, number: int) -> float:
        key = (name, number)
        if key not in self._places:
            seed = f"{self.timeline.scenario.seed} {name} {number} link"
            self._places[key] = Random(seed).random()  # noqa: S311 (load, no secret)
        return self._places[key]
