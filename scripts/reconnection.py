"""How soon the JavaScript client goes on, and what it loses; for scripts/figures.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from target import Target

SCRIPT = Path(__file__).with_name("reconnect.mjs")
NODE_MODULES = Path(sys.prefix) / "node" / "node_modules"


def reconnect(relay: Target, cuts: int, random_cuts: int) -> None:
    node = shutil.which("node")
    if node is None or not NODE_MODULES.exists():
        raise SystemExit("reconnect needs Node, and its packages: run ./scripts/test once")
    tokens = {"user": relay.token, "service": relay.token}
    subprocess.run(
        [node, SCRIPT, str(cuts), str(random_cuts)],
        env={
            "PATH": os.environ["PATH"],
            "NODE_PATH": str(NODE_MODULES),
            "RELAY_URL": f"http://{relay.host}:{relay.port}",
            "RELAY_TOKENS": json.dumps(tokens),
        },
        check=True,
    )
