"""The parent of a relay that a load test started: ends it when the load test has. Floor 6.

A script of its own, which needs nothing of relay and nothing but the standard library:

    python -I -S keeper.py FOLDER COMMAND...

It starts the command, says its process id in a line on stdout, which the command writes to as well,
and ends when the command does. Standard input is a pipe whose other end only the load test holds:
when it ends, because the load test closed it or was killed, the command gets SIGTERM, and SIGKILL
if that does not end it. Then FOLDER, which holds all that it has written, is removed.
"""

import os
import select
import shutil
import signal
import subprocess
import sys

# The seconds that each may take; relay drains, and stops its Postgres.
STEPS = ((signal.SIGTERM, 20.0), (signal.SIGKILL, None))


def main(arguments: list[str]) -> int:
    folder, *command = arguments
    # The end of the child arrives as a byte in a pipe, so that one `select` waits for both.
    heard, hear = os.pipe()
    os.set_blocking(hear, False)
    signal.set_wakeup_fd(hear)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 (the relay)
    os.write(1, b"%d\n" % child.pid)
    while child.poll() is None:
        ready, _, _ = select.select([0, heard], [], [])
        if heard in ready:
            os.read(heard, 512)
        if 0 in ready:
            _stop(child)
            shutil.rmtree(folder, ignore_errors=True)
    return child.returncode


def _stop(child: "subprocess.Popen[bytes]") -> None:
    for step, seconds in STEPS:
        child.send_signal(step)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
