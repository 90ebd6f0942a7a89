"""A relay that is the first process of its container, with no init above it.

The kernel delivers to such a process only the signals that it handles. So SIGTERM would do nothing
before relay serves, as while the database does not answer, nor in commands that never handle it:
whoever stops the container would wait, and then kill it.
"""

from __future__ import annotations

import os
import signal

FIRST_PROCESS = 1
"""The id of the first process."""
EXIT_TERMINATED = 128 + signal.SIGTERM


def end_on_sigterm_if_first() -> None:
    """Have SIGTERM end this process if it is the first one, as it ends any other that does not
    handle it. What handles it later, such as a relay that drains, takes precedence."""
    if os.getpid() == FIRST_PROCESS and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_TERMINATED))
