"""`python -m relay` whose services break as a test says. Started by test_services.py.

    FAULTS=DIR TURN=SECONDS python -m tests.integration.faults.broken_relay serve ...

While DIR has a file of this name, the dispatch of alerts `crashes` or `hangs` when it reads them,
is `deaf`, which is to say that it hangs and does not end when told to, `never-starts`, or
`starts-late`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import trio

from relay import app
from relay.alerts.dispatch import AlertDispatch
from relay.cli.main import main
from relay.model.alerts.alert import StoredAlert
from relay.postgres.tables.alerts.alerts import AlertTable
from tests.integration.faults.services import LATE

_folder = Path(os.environ["FAULTS"])
_after, _run = AlertTable.after, AlertDispatch.run


def _is(fault: str) -> bool:
    return (_folder / fault).exists()


async def _break_after(self: AlertTable, alert_id: int, *, limit: int = 500) -> list[StoredAlert]:
    if _is("crashes"):
        raise RuntimeError("a bug in the dispatch")
    if _is("hangs"):
        await trio.sleep_forever()
    while _is("deaf"):
        with trio.CancelScope(shield=True):
            await trio.sleep(0.05)
    return await _after(self, alert_id, limit=limit)


async def _break_start(self: AlertDispatch, **how: Any) -> NoReturn:
    if _is("never-starts"):
        await trio.sleep_forever()
    if _is("starts-late"):
        await trio.sleep(LATE)
    await _run(self, **how)


if __name__ == "__main__":
    AlertTable.after = _break_after  # type: ignore[method-assign]
    AlertDispatch.run = _break_start  # type: ignore[method-assign]
    vars(app).update(PROGRESS_TIMEOUT=float(os.environ["TURN"]), MAX_QUERIES_PER_STEP=0)
    sys.exit(main())
