"""Removes the mask of what a client sends (RFC 6455, section 5.3).

`websockets` ships this in C; without its extension, its pure Python version is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.transport.link import Buffer

    def unmask(data: Buffer, mask: Buffer) -> bytes:
        """Return the payload unmasked; masking is the same operation."""
else:
    try:
        from websockets.speedups import apply_mask as unmask
    except ImportError:
        from websockets.utils import apply_mask as unmask  # noqa: F401 (a re-export)
