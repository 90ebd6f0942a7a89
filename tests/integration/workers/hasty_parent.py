"""`python -m relay` whose parent of workers soon kills one that says nothing. Started by
test_worker_faults.py."""

from __future__ import annotations

import sys

from relay.cli.main import main
from relay.workers import parent

STUCK_AFTER = 3.0
"""Seconds; workers say something every second."""

if __name__ == "__main__":
    vars(parent)["STUCK_AFTER"] = STUCK_AFTER
    sys.exit(main())
