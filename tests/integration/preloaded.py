"""What the process imports from which relays are forked; what is there is none of their garbage."""

from __future__ import annotations

import encodings.idna
import gc

import relay.app
import relay.cli.main
import relay.process.garbage
import relay.web.setup
from relay.web.assets import load_assets

__all__ = ["encodings", "relay"]

for asset in load_assets().values():
    assert asset.content  # what was read and compressed is kept
gc.collect()
gc.freeze()  # each relay collects once at its start, and would touch the memory of all this
