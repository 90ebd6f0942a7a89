"""The machine that a part of a load test runs on, in words."""

from __future__ import annotations

import os
import platform


def describe_machine() -> str:
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores,"
        f" Python {platform.python_version()}"
    )
