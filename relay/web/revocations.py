"""The body of `POST /revocations`: what has ended."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from relay.auth.methods.claims import MAX_ID_LENGTH
from relay.model.access.change import Change

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_LENGTH)]

_HEX = re.compile(r"[0-9A-Fa-f]{64}")
_BASE64 = re.compile(r"[A-Za-z0-9_+/-]{43}=?")


class Revocation(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A session, a user all of whose sessions have ended, or the SHA-256 of a session token in
    hexadecimal or base64; at least one of them."""

    session_id: Id | int | None = None
    user_id: Id | int | None = None
    token_sha256: str | None = msgspec.field(default=None, name="tokenSha256")


def revocation_in(body: bytes) -> list[Change]:
    """What a body says has ended; `ValueError` with the reason for anything else."""
    try:
        body.decode()
        revocation = msgspec.json.decode(body, type=Revocation)
    except msgspec.MsgspecError as problem:
        raise ValueError(str(problem)) from None
    except (RecursionError, UnicodeError):
        raise ValueError("Expected JSON in UTF-8") from None
    changes = []
    if revocation.session_id is not None:
        changes.append(Change("session", str(revocation.session_id)))
    if revocation.user_id is not None:
        changes.append(Change("user", str(revocation.user_id)))
    if revocation.token_sha256 is not None:
        changes.append(Change("token", _hash(revocation.token_sha256)))
    if not changes:
        raise ValueError("Expected sessionId, userId or tokenSha256")
    return changes


def _hash(text: str) -> str:
    if _HEX.fullmatch(text):
        return text.lower()
    if _BASE64.fullmatch(text):
        urlsafe = text.rstrip("=").replace("+", "-").replace("/", "_")
        try:
            return base64.urlsafe_b64decode(f"{urlsafe}=").hex()
        except binascii.Error:
            pass
    raise ValueError("Expected the 32 bytes of a SHA-256 in hexadecimal - at `$.tokenSha256`")
