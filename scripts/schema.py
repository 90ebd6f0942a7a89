"""Writes docs/protocol.schema.json, a JSON Schema of all messages, from the code.

.venv/bin/python scripts/schema.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from relay.protocol.schema import message_schema

PAGE = Path(__file__).resolve().parent.parent / "docs" / "protocol.schema.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it differs")
    options = parser.parse_args()
    current = json.dumps(message_schema(), indent=2) + "\n"
    if options.check:
        if not PAGE.exists() or PAGE.read_text() != current:
            print("docs/protocol.schema.json is out of date: run scripts/schema.py")
            return 1
        return 0
    PAGE.write_text(current)
    print(f"wrote docs/{PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
