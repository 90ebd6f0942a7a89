"""The parent of a process that must not outlive relay, in whatever way relay ends.

A script of its own, which needs the standard library alone: `reaper_command` says how to run it.
Run it in a session of its own, so that Ctrl-C in a terminal reaches neither it nor its child.

Standard input is a pipe whose other end only relay holds. When relay closes it or dies, the child
gets the signals of `--stop`, one after the other, until it has ended. A pipe belongs to the
process; the kernel's signal for a parent's death would come when the *thread* that started us ends,
and Trio's worker threads do so after some seconds of idleness.

Signals that ask for an end are ignored: systemd sends SIGTERM to all processes of a service, and
relay needs Postgres until it has drained. When the child ends, so does the reaper.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from getopt import getopt

OPTIONS = ["stop=", "pass-fd=", "user=", "remove=", "report-pid"]
IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

StopStep = tuple[signal.Signals, float]
"""A signal, and the seconds that the child has to end before the next one."""


def reaper_command(
    command: Sequence[str],
    *,
    stop: Sequence[StopStep],
    pass_fd: int | None = None,
    user: str = "",
    remove: str = "",
    report_pid: bool = False,
) -> list[str]:
    """The command line that runs `command` under a reaper; SIGKILL follows the last step.

    `pass_fd` is a file descriptor that the child inherits, `user` is `UID:GID` to run it as,
    `remove` a folder to remove when relay is gone. `report_pid` prints the child's process id in a
    line on stdout as soon as it runs.
    """
    options = [f"--stop={number.name}:{seconds}" for number, seconds in stop]
    if pass_fd is not None:
        options.append(f"--pass-fd={pass_fd}")
    if user:
        options.append(f"--user={user}")
    if remove:
        options.append(f"--remove={remove}")
    if report_pid:
        options.append("--report-pid")
    return [sys.executable, "-I", "-S", __file__, *options, "--", *command]


def main(arguments: Sequence[str]) -> int:
    """Run the child to its end; returns its exit status."""
    given, command = getopt(list(arguments), "", OPTIONS)
    options = {name.removeprefix("--"): value for name, value in given}
    steps = [_step(value) for name, value in given if name == "--stop"]
    # The end of the child arrives as a byte in a pipe, so that one `select` waits for everything.
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = _start(command, options)
    for number in IGNORED:  # only now, since the child would inherit it
        signal.signal(number, signal.SIG_IGN)
    if "report-pid" in options:
        os.write(1, b"%d\n" % child.pid)
    while child.poll() is None:
        ready, _, _ = select.select([0, woken], [], [])
        if 0 in ready:
            _stop(child, steps)
            if "remove" in options:
                shutil.rmtree(options["remove"], ignore_errors=True)
        else:
            os.read(woken, 512)
    return child.returncode


def _step(text: str) -> StopStep:
    name, _, seconds = text.partition(":")
    return signal.Signals[name], float(seconds)


def _start(command: Sequence[str], options: dict[str, str]) -> subprocess.Popen[bytes]:
    user = options.get("user")
    uid, gid = map(int, user.split(":")) if user else (None, None)
    return subprocess.Popen(  # noqa: S603 - relay's own command
        command,
        stdin=subprocess.DEVNULL,
        pass_fds=[int(options["pass-fd"])] if "pass-fd" in options else [],
        user=uid,
        group=gid,
        extra_groups=[] if user else None,
    )


def _stop(child: subprocess.Popen[bytes], steps: Sequence[StopStep]) -> None:
    for number, seconds in steps:
        child.send_signal(number)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        return
    child.kill()
    child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
