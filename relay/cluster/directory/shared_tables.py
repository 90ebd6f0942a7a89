"""The tables that all nodes share, as the cluster uses them: `relay.postgres` has them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from relay.model.access.permissions import VisibleStreams
from relay.model.cluster import (
    ClaimRequest,
    HeldStream,
    LiveStream,
    Node,
    NodeBeat,
    StreamClaim,
    StreamNews,
)


class SharedStreams(Protocol):
    """Which node has which stream. All methods raise `StoreUnavailable`."""

    async def claim(self, node_id: str, requests: Sequence[ClaimRequest]) -> list[StreamClaim]:
        """Decide which of these connections of a node produce streams; in their order."""

    async def renew_epoch(self, stream_id: str, node_id: str, term: int) -> int | None:
        """Begin another epoch of a stream that this node has; None if it has it no more."""

    async def update(self, node_id: str, streams: Sequence[LiveStream]) -> None:
        """Write the status and the metadata of streams that this node has."""

    async def end(self, node_id: str, ended: Sequence[tuple[str, int]]) -> None:
        """Remove streams of this node, each with its term."""

    async def find(self, stream_ids: Sequence[str]) -> list[LiveStream]:
        """Those of these streams that are live, in no order."""

    async def listed(self, visible: VisibleStreams, after: str, limit: int) -> list[LiveStream]:
        """The first live streams behind an id that somebody may watch, by their ids."""

    async def restore(self, node_id: str, held: Sequence[HeldStream]) -> list[str]:
        """Write rows of this node again that are gone; returns the streams that another one has."""


class SharedNodes(Protocol):
    """The nodes that live. All methods raise `StoreUnavailable`."""

    async def beat(self, node: Node) -> NodeBeat:
        """Say that a node lives, and learn who else does."""

    async def leave(self, node_id: str) -> None:
        """Remove a node and its streams."""

    async def reap(self) -> list[str]:
        """Remove the nodes that are dead, and their streams; returns their ids."""


class NewsListener(Protocol):
    """Receives notifications of what has changed."""

    async def receive(self) -> StreamNews:
        """Wait for the next ones; `StoreUnavailable` when the connection is lost."""


class News(Protocol):
    """The notifications of the tables."""

    def listen(self) -> AbstractAsyncContextManager[NewsListener]:
        """Receive them from now on; `StoreUnavailable`."""
