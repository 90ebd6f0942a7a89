"""`python -m relay` that asks an issuer for its keys again after little time. Started by
test_other_tokens.py."""

from __future__ import annotations

import sys

from relay.auth.methods import jwks
from relay.cli.main import main

if __name__ == "__main__":
    jwks.JWKS_MIN_INTERVAL = 0.5
    sys.exit(main())
