"""`python -m relay`. Floor 6."""

import sys

from relay.cli import main

sys.exit(main())
