"""`python -m relay` with a verification that breaks for some tokens. Started by test_secrets.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from relay.cli.main import main
from relay.model.access.identity import User
from relay.postgres.tables.sessions.sessions import BetterAuthSessions

BREAKS = "break"
"""What breaks the verification of a token that begins so."""

_find = BetterAuthSessions.find


async def _find_or_break(self: BetterAuthSessions, tokens: Sequence[str]) -> dict[str, User]:
    for token in tokens:  # local variables, which a careless traceback prints
        if token.startswith(BREAKS):
            raise RuntimeError("verification is broken")
    return await _find(self, tokens)


if __name__ == "__main__":
    BetterAuthSessions.find = _find_or_break  # type: ignore[method-assign]
    sys.exit(main())
