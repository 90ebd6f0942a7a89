"""The user that Postgres runs as, and the paths that this user may access. A part of `embedded.py`.

Postgres refuses to run as root, so root runs it as `nobody`. Nothing here changes the mode of a
folder.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import Any

from attrs import frozen

from relay.errors import ConfigError

UNPRIVILEGED = "nobody"


@frozen
class Account:
    """Another user to run Postgres as; relay is root."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `subprocess.Popen`."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def give(self, path: Path) -> None:
        os.chown(path, self.uid, self.gid)

    def obstacle(self, path: Path, *, may_read: bool = True) -> Path | None:
        """The first of the parents of `path`, and `path` itself, that this user may not access."""
        path = path.resolve()
        for folder in reversed(path.parents):
            if not self._may(folder, stat.S_IXOTH):
                return folder
        wanted = stat.S_IXOTH | (stat.S_IROTH if may_read else 0)
        return None if self._may(path, wanted) else path

    def _may(self, path: Path, wanted: int) -> bool:
        status = path.stat()
        if status.st_uid == self.uid:
            wanted <<= 6
        elif status.st_gid == self.gid:
            wanted <<= 3
        return status.st_mode & wanted == wanted


def check_user_name(account: Account | None) -> None:
    """`ConfigError` unless the user that Postgres runs as has a name, which initdb asks for.

    Containers may run programs as a number that their /etc/passwd does not know.
    """
    uid = os.geteuid() if account is None else account.uid
    try:
        pwd.getpwuid(uid)
    except KeyError:
        raise ConfigError(
            f"the user {uid} has no name in /etc/passwd, which PostgreSQL needs:"
            " add one there, run relay as another user, or set database_url"
        ) from None


def choose_account(cluster: Path) -> Account | None:
    """The user to run Postgres as: None for our own; for root, the cluster's owner, or `nobody`."""
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (status := cluster.stat()).st_uid != 0:
        return Account(status.st_uid, status.st_gid)
    try:
        entry = pwd.getpwnam(UNPRIVILEGED)
    except KeyError:
        raise ConfigError(
            "Postgres does not run as root, and there is no user"
            f" {UNPRIVILEGED!r} to run it as: start relay as another user, or set database_url"
        ) from None
    return Account(entry.pw_uid, entry.pw_gid)
