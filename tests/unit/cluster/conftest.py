"""Two and three nodes of a cluster, in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.cluster.memory_cluster import MemoryCluster, open_cluster


@pytest.fixture
async def pair() -> AsyncIterator[MemoryCluster]:
    """Two nodes, `a` and `b`."""
    async with open_cluster("a", "b") as cluster:
        yield cluster


@pytest.fixture
async def three() -> AsyncIterator[MemoryCluster]:
    """Three nodes, `a`, `b` and `c`."""
    async with open_cluster("a", "b", "c") as cluster:
        yield cluster
