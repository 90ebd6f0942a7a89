"""Hostile clients, to show that other clients do not suffer from them.

The relay may end them as it likes: their connections and how they ended are counted, not checked.
"""

from __future__ import annotations

from attrs import define

from relay.client import DialFailed, ServerError
from relay.client.errors import Closed
from relay.load.actors.actor import Actor
from relay.load.actors.attacks import ATTACKS, Attacker
from relay.load.scenario.groups import HostileGroup


@define(eq=False)
class Hostile(Actor):
    """Connects, misbehaves in the way of its kind, and connects again."""

    _attempts: int = 0

    async def _connect_once(self, due: float) -> bool:  # noqa: ARG002 (no times are measured)
        group = self.group
        assert isinstance(group, HostileGroup)
        attacker = Attacker(
            context=self.context,
            group=group,
            name=self.name,
            number=self.number,
            attempt=self._attempts,
            target=self.target,
            random=self.random,
            stats=self.stats,
        )
        self._attempts += 1
        try:
            await ATTACKS[group.kind](attacker)
        except DialFailed as failure:
            self.stats.counts["connect.failed"] += 1
            attacker.note_ending(failure)
        except (Closed, ServerError) as ending:
            self.stats.counts["closes"] += 1
            attacker.note_ending(ending)
        return True
