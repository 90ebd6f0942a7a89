"""The parent of the embedded Postgres: stops it when relay is gone, however relay went. Floor 1.

A script of its own, run by `embedded.py` in its own session, so that Ctrl-C in a terminal reaches
neither it nor Postgres:

    python -I -S watchdog.py LOCK UID:GID COMMAND...

LOCK is a file descriptor that Postgres inherits, UID:GID whom to run it as (empty: as ourselves).
Standard input is a pipe whose other end only relay holds. When it ends, because relay closed it or
relay ended in whatever way, Postgres is stopped. A pipe belongs to the process; the kernel's signal
for a parent's death would come when the *thread* that started us ends, and Trio's worker threads
do so after some seconds of idleness.

Signals that ask for an end are left to relay: systemd sends SIGTERM to all processes of a service,
and relay needs Postgres until it has drained.
"""

import os
import select
import signal
import subprocess
import sys

# Fast shutdown, immediate shutdown, and the end of patience, with the seconds that each may take.
STEPS = ((signal.SIGINT, 10.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, None))
FOR_RELAY = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(arguments: list[str]) -> int:
    lock, account, *command = arguments
    # The end of a child arrives as a byte in a pipe, so that one `select` waits for everything.
    heard, hear = os.pipe()
    os.set_blocking(hear, False)
    signal.set_wakeup_fd(hear)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    server = _start(command, int(lock), account)
    for number in FOR_RELAY:  # Only now: what is ignored would be inherited as ignored.
        signal.signal(number, signal.SIG_IGN)
    while server.poll() is None:
        ready, _, _ = select.select([sys.stdin, heard], [], [])
        if sys.stdin in ready:
            _stop(server)
        else:
            os.read(heard, 512)
    return server.returncode


def _start(command: list[str], lock: int, account: str) -> "subprocess.Popen[bytes]":
    uid, gid = map(int, account.split(":")) if account else (None, None)
    return subprocess.Popen(  # noqa: S603 - relay's own command
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=[lock],
        user=uid,
        group=gid,
        extra_groups=[] if account else None,
    )


def _stop(server: "subprocess.Popen[bytes]") -> None:
    for step, seconds in STEPS:
        server.send_signal(step)
        try:
            server.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
