"""Puts together what follows the decisions of operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, Self

from attrs import frozen

from relay.concurrency.supervisor import SupervisedTask
from relay.hub.hub import Hub
from relay.model.access.change import Change
from relay.operators.operator_watch import OperatorWatch, RequestTable
from relay.operators.owner_watch import OwnerWatch, StreamOwnerTable
from relay.operators.reclaim import DeletionTrigger, ReclaimableStreams, StreamReclaim
from relay.settings.limits import age_of
from relay.settings.settings import Settings


class OperatorTables(Protocol):
    """The tables of streams, and of what operators ask."""

    @property
    def streams(self) -> StreamOwnerTable: ...

    @property
    def stream_ownership(self) -> ReclaimableStreams: ...

    @property
    def operator_requests(self) -> RequestTable: ...

    @property
    def triggers(self) -> DeletionTrigger: ...


@frozen(eq=False, repr=False)
class OperatorParts:
    """The owners of live streams, the requests of operators, and their tasks."""

    owners: OwnerWatch
    requests: OperatorWatch
    tasks: Mapping[str, SupervisedTask]
    """To be supervised, by name."""

    @classmethod
    def build(
        cls, settings: Settings, hub: Hub, tables: OperatorTables, node_id: str | None = None
    ) -> Self:
        """What the settings ask for, for a node if this is one; call `connect` before the tasks
        run."""
        owners = OwnerWatch(hub, tables.streams)
        requests = OperatorWatch(tables.operator_requests, node_id=node_id)
        tasks: dict[str, SupervisedTask] = {"stream-owners": owners, "operator": requests}
        if settings.reclaim_streams_after is not None:
            tasks["stream-reclaim"] = StreamReclaim(
                tables.stream_ownership, tables.triggers, age_of(settings.reclaim_streams_after)
            )
        return cls(owners, requests, tasks)

    def note(self, change: Change) -> None:
        """Note what the database notifies of."""
        self.owners.note(change)
        self.requests.note(change)

    def connect(
        self, end_user: Callable[[str], int], end_connection: Callable[[int, str | None], bool]
    ) -> None:
        """Say how connections are ended: those of a user, and one by its number, if it is of the
        user that is named."""
        self.requests.end_user, self.requests.end_connection = end_user, end_connection
