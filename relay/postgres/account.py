"""Who Postgres runs as, and where that user may go. Floor 1, a part of `embedded.py`.

Postgres refuses to run as root, so root runs it as `nobody`. Nothing here ever opens a door:
parents' modes are looked at, not changed.
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
    """A user other than ourselves; we are root."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"

    @property
    def options(self) -> dict[str, Any]:
        """For `subprocess.Popen`."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def give(self, path: Path) -> None:
        os.chown(path, self.uid, self.gid)

    def obstacle(self, path: Path, *, may_read: bool = True) -> Path | None:
        """What keeps this user from `path`: a folder on the way, or `path` itself."""
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


def choose_account(cluster: Path) -> Account | None:
    """Whom to run Postgres as: None for ourselves; for root, the cluster's owner, or `nobody`."""
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
