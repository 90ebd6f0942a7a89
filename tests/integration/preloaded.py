"""What the process imports from which relays are forked; what is there is none of their garbage.

Also what relay imports only where it is used, such as by the nodes of a cluster.
"""

from __future__ import annotations

import encodings.idna
import gc

import relay.app
import relay.auth.methods.application
import relay.auth.methods.introspection
import relay.auth.methods.jwks
import relay.auth.methods.jwt
import relay.cli.main
import relay.cluster.setup
import relay.doctor.report
import relay.ingest.ingest
import relay.outgoing.http_client
import relay.process.garbage
import relay.top.run
import relay.web.setup
from relay.web.assets import load_assets

__all__ = ["encodings", "relay"]

for asset in load_assets().values():
    assert asset.content  # what was read and compressed is kept
gc.collect()
gc.freeze()  # each relay collects once at its start, and would touch the memory of all this
