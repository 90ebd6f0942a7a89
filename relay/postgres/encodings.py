"""Which characters a database can hold, by the name that Postgres has for its encoding."""

from __future__ import annotations

import codecs
import re
from functools import cache

# Names that Python knows otherwise, or not at all. SQL_ASCII takes any bytes, so it takes ours.
_CODECS = {"SQL_ASCII": "utf-8", "UTF8": "utf-8", "WIN": "cp1251", "ALT": "cp866"}


def can_encode(text: str, encoding: str) -> bool:
    """Whether a text has only characters of an encoding; True if Python does not know it."""
    if text.isascii():
        return True
    codec = _codec(encoding)
    if codec is None:
        return True
    try:
        codec.encode(text)
    except UnicodeEncodeError:
        return False
    return True


@cache
def _codec(encoding: str) -> codecs.CodecInfo | None:
    name = _CODECS.get(encoding) or re.sub(r"^WIN(?=[0-9]+$)", "cp", encoding)
    try:
        return codecs.lookup(name)
    except LookupError:
        return None
