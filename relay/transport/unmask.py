"""Undoing the mask of what a client sends (RFC 6455, section 5.3). Floor 1.

`websockets` ships this in C; where its extension was not built, its own pure version serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relay.transport.link import Buffer

    def unmask(data: Buffer, mask: Buffer) -> bytes:
        """The payload in clear; masking and unmasking are the same."""
else:
    try:
        from websockets.speedups import apply_mask as unmask
    except ImportError:
        from websockets.utils import apply_mask as unmask  # noqa: F401 (for others)
