"""`python -m relay` that tells at its end how often the kernel took only a part of a write.

With `--blind` before the command it runs as where the kernel cannot be asked what lies unsent:
there only the writer tasks write. Started by scripts/stress.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

from attrs import define

from relay.cli.main import main
from relay.transport import listener
from relay.transport.link import Buffer, SocketLink

BLIND = "--blind"


@define(eq=False)
class Tally:
    """Of all connections together."""

    writes: int = 0
    cut: int = 0
    refused: int = 0

    def __str__(self) -> str:
        return f"{self.writes} writes, {self.cut} cut, {self.refused} refused"


tally = Tally()


@define(eq=False)
class WatchedLink(SocketLink):
    """A socket that counts what becomes of its writes."""

    def send(self, data: Buffer) -> int:
        return self._watch(SocketLink.send, data)

    def send_if_low(self, data: Buffer) -> int:
        return self._watch(SocketLink.send_if_low, data)

    def _watch(self, send: Callable[[SocketLink, Buffer], int], data: Buffer) -> int:
        tally.writes += 1
        try:
            taken = send(self, data)
        except BlockingIOError:
            tally.refused += 1
            raise
        tally.cut += taken < len(data)
        return taken


if __name__ == "__main__":
    arguments = sys.argv[1:]
    blind = arguments[:1] == [BLIND]
    kind = partial(WatchedLink, knows_unsent=False) if blind else WatchedLink
    listener.SocketLink = kind  # type: ignore[assignment, attr-defined]
    code = main(arguments[blind:])
    print(tally)  # noqa: T201
    sys.exit(code)
