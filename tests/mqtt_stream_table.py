"""The table of the streams of which MQTT brokers retain messages, in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from uuid import UUID

from attrs import define, field

from relay.errors import StoreUnavailable
from relay.model.targets.alert_target import AlertTarget
from relay.model.targets.mqtt_stream import AnnouncedNow, MqttStream


@define(eq=False)
class MqttStreamTable:
    """A stream of `states` is (online, watched)."""

    states: dict[str, tuple[bool, bool]] = field(factory=dict)
    all_targets: Sequence[AlertTarget] = ()
    room: int = 1000
    known: set[str] = field(factory=set)
    away: bool = False
    leased_by: UUID | None = None
    releases: int = 0
    retries: int = 0

    async def announce(self, _target: AlertTarget, stream_ids: Collection[str]) -> AnnouncedNow:
        if self.away:
            raise StoreUnavailable
        new = [each for each in stream_ids if each not in self.known]
        added = new[: max(0, self.room - len(self.known))]
        self.known.update(added)
        return AnnouncedNow(frozenset(self.known & {*stream_ids}), frozenset(added))

    async def targets(self) -> Sequence[AlertTarget]:
        return self.all_targets

    async def lease(self, _target: AlertTarget, lease: UUID, *, lasts: timedelta) -> bool:
        if self.leased_by is not None:
            return False
        self.leased_by = lease
        return True

    async def release(self, _target: AlertTarget, lease: UUID) -> None:
        assert self.leased_by == lease
        self.leased_by = None
        self.releases += 1

    async def retry_now(self, _target: AlertTarget) -> None:
        self.retries += 1

    async def has_changed(self, _target: AlertTarget) -> bool:
        missing = self.states.keys() - self.known
        return bool(self.known - self.states.keys()) or (
            bool(missing) and len(self.known) < self.room
        )

    async def streams(
        self, _target: AlertTarget, after: str, most: int, *, announced: bool
    ) -> Sequence[MqttStream]:
        assert self.leased_by is not None
        those = [each for each in self.states if (each in self.known) == announced]
        ids = sorted(each for each in those if each > after)[:most]
        return [MqttStream(each, *self.states[each]) for each in ids]

    async def forgotten(self, _target: AlertTarget, most: int) -> Sequence[str]:
        return sorted(self.known - self.states.keys())[:most]

    async def withdraw(self, _target: AlertTarget, stream_ids: Sequence[str]) -> None:
        self.known -= {*stream_ids}
