"""`python -m relay` whose clock steps by an hour: forward on SIGUSR1, back on SIGUSR2. Started by
test_clock.py. What the system itself does by its clock, Postgres with it, does not step.
"""

from __future__ import annotations

import datetime as dt
import signal
import sys
import time

from relay import app
from relay.auth.methods import application, introspection, jwks, jwt
from relay.cli.main import main
from relay.web import setup

HOUR = 3600

# They import everything that is to have the other clock.
assert app
assert all((application, introspection, jwks, jwt, setup))  # relay imports them when it needs them

_time, _time_ns = time.time, time.time_ns
_step = 0


class Stepped(dt.datetime):
    """A `datetime` whose `now` is that of the stepped clock."""

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Stepped:
        return cls.fromtimestamp(time.time(), tz)


def _step_by(hours: int) -> None:
    global _step  # noqa: PLW0603
    _step += hours * HOUR
    sys.stderr.write(f"the clock has stepped by {hours} h\n")


if __name__ == "__main__":
    time.time = lambda: _time() + _step
    time.time_ns = lambda: _time_ns() + _step * 1_000_000_000
    for name, module in list(sys.modules.items()):
        if name.startswith("relay.") and getattr(module, "datetime", None) is dt.datetime:
            module.datetime = Stepped  # type: ignore[attr-defined]
    signal.signal(signal.SIGUSR1, lambda *_: _step_by(1))
    signal.signal(signal.SIGUSR2, lambda *_: _step_by(-1))
    sys.exit(main())
