"""Recognizes base64 as phones write it, and rewrites it as standard base64 (RFC 4648, section 4).

Nearly every frame is clean already, and telling so has to cost next to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Generator

import msgspec

ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
ALPHABET_AND_QUOTE = ALPHABET + b'"'
PADDING = (b"", b'="', b'=="')
"""By the number of characters, with a quote."""
END = 256
"""Bytes at either end of a long text that are read in full."""
NEEDLE = 16
"""Bytes by which the data is found in its message."""
MAX_DATA_URL_HEAD = 256
"""Bytes of a `data:` URL before its comma."""
MAX_INDENT = 8
"""Blanks beside a line break that do not count as lost `+`."""

TEXT_PIECE_BYTES = 64 * 1024
WINDOW_BYTES = 1024
"""A long text is rewritten in pieces of this size at most; each ends within its last window."""

_UP_TO_LETTERS = re.compile(rb".*[A-Za-z0-9+/_-]{9}", re.DOTALL)
"""So many that no escape ends behind them."""
_LINE_BREAKS = b"\r\n\t\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_PERCENT = ((b"%2B", b"+"), (b"%2F", b"/"), (b"%3D", b"="), (b"%0D", b"\r"), (b"%0A", b"\n"))


def looks_standard(data: msgspec.Raw, payload: bytes) -> bool:
    """Whether the data of a frame, a JSON string in this payload, is standard base64.

    What is long is looked through for the characters that other spellings and lost ones leave, and
    its ends are read in full: reading all of it costs as much as decoding the message does.
    """
    view = memoryview(data)
    size = view.nbytes
    if size % 4 != 2:  # with two quotes
        return False
    if size > 2 * END:
        text = bytes(view[:END]) + bytes(view[-END:])
        start = payload.find(text[:NEEDLE])
        end = start + size - END
        if (
            payload.find(b"\\", start, end) >= 0
            or payload.find(b"-", start, end) >= 0
            or payload.find(b"_", start, end) >= 0
            or payload.find(b" ", start, end) >= 0
            or payload.find(b"=", start, end) >= 0
            or payload.find(b"%", start, end) >= 0
        ):
            return False
    else:
        text = bytes(view)
    residue = text.translate(None, ALPHABET_AND_QUOTE)
    return not residue or (len(residue) <= 2 and text.endswith(PADDING[len(residue)]))


def standard_base64(data: bytes) -> bytes | None:
    """Rewrite a JSON string with its quotes, if what it says can be understood as base64 in just
    one way; returns None if it cannot be.

    Taken are JSON escapes, line breaks, the head of a `data:` URL, the alphabet for URLs, and a
    missing or wrong padding.
    """
    steps = standard_base64_in_steps(data)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            standard: bytes | None = end.value
            return standard


def standard_base64_in_steps(data: bytes) -> Generator[None, None, bytes | None]:
    """Do what `standard_base64` does, in steps that take well below a millisecond each."""
    pieces: list[bytes] = []
    percent = plus = False
    start, end = 1, len(data) - 1
    while start < end:
        stop = _end_of_piece(data, start, end)
        if stop is None:
            return None
        piece = _unescaped(data[start:stop])
        if piece is None:
            return None
        if start == 1:
            piece = piece.lstrip()
            if piece[:5].lower() == b"data:":
                head, comma, piece = piece.partition(b",")
                base64 = comma and len(head) <= MAX_DATA_URL_HEAD
                if not (base64 and head.lower().endswith(b";base64")):
                    return None
                percent = True
        if stop == end:
            piece = piece.rstrip()
        if percent:
            for escaped, character in _PERCENT:
                piece = piece.replace(escaped, character).replace(escaped.lower(), character)
        plus = plus or b"+" in piece or b"-" in piece
        pieces.append(_without_line_breaks(piece).translate(_URL_SAFE))
        start = stop
        yield
    return (yield from _joined(pieces, blanks=plus))


def _joined(pieces: list[bytes], *, blanks: bool) -> Generator[None, None, bytes | None]:
    """Join pieces of base64, with its padding; `blanks`: these may be left out, since a `+` that
    decoding as a form has lost would be missing everywhere."""
    padding = size = 0
    for at in range(len(pieces)):
        if blanks:
            pieces[at] = pieces[at].replace(b" ", b"")
        piece = pieces[at]
        residue = piece.translate(None, ALPHABET)
        if residue.strip(b"=") or len(residue) > 2:
            return None
        padding += len(residue)
        size += len(piece)
        yield
    left = padding
    for at in range(len(pieces) - 1, -1, -1):
        digits = pieces[at].rstrip(b"=")
        left -= len(pieces[at]) - len(digits)
        pieces[at] = digits
        if digits:
            break
    digits_size = size - padding
    if left or padding > (2 if digits_size else 0) or digits_size % 4 == 1:
        return None
    return b"".join((b'"', *pieces, b"=" * (-digits_size % 4), b'"'))


def _end_of_piece(data: bytes, start: int, end: int) -> int | None:
    """Find where a piece of the text may end: between letters, so that it cuts no escape and no
    blanks at a line break; None if there is no such place."""
    if end - start <= TEXT_PIECE_BYTES:
        return end
    window = start + TEXT_PIECE_BYTES - WINDOW_BYTES
    match = _UP_TO_LETTERS.match(data, window, window + WINDOW_BYTES)
    return None if match is None else match.end()


def _unescaped(piece: bytes) -> bytes | None:
    if b"\\" not in piece:
        return piece
    try:
        return msgspec.json.decode(b'"%s"' % piece, type=str).encode()
    except (msgspec.DecodeError, UnicodeError):
        return None


def _without_line_breaks(content: bytes) -> bytes:
    """Remove line breaks with the blanks beside them."""
    if b" " in content and (b"\n" in content or b"\r" in content):
        content = content.replace(b"\r", b"\n")
        for _ in range(MAX_INDENT):
            if b"\n " not in content and b" \n" not in content:
                break
            content = content.replace(b"\n ", b"\n").replace(b" \n", b"\n")
    return content.translate(None, _LINE_BREAKS)
