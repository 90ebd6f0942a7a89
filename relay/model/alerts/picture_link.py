"""Links to what is kept with one alert, for programs that alerts are posted to.

Such a link is signed and not stored: whoever has it may fetch one file, until it expires. It names
the alert and the kind, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from attrs import field, frozen

from relay.model.alerts.alert_picture import ENDINGS, PictureKind, PictureName

PICTURE_LINK_SECONDS = 2 * 24 * 3600
"""From the alert on. Each attempt to post an alert has the same links, and may be a day late."""


@frozen
class PictureLinks:
    """Signs and checks links."""

    _key: bytes = field(repr=False)
    _base: str = ""
    """The address of relay, without a slash at the end; without one, links begin with a slash."""

    def link_to(self, name: PictureName) -> str:
        """The link to a file, the same each time."""
        expires = name.alert_id // 1_000_000 + PICTURE_LINK_SECONDS
        return (
            f"{self._base}/alerts/{name.alert_id}/{file_of(name.kind)}"
            f"?expires={expires}&signature={self._sign(name, expires)}"
        )

    def is_valid(self, name: PictureName, expires: int, signature: str, now: float) -> bool:
        """Whether a link was signed here and has not expired; `now` is in seconds since the Unix
        epoch."""
        signed = self._sign(name, expires)
        right = hmac.compare_digest(signed.encode(), signature.encode("utf-8", "surrogatepass"))
        return right and now < expires

    def _sign(self, name: PictureName, expires: int) -> str:
        text = f"relay picture\n{name.alert_id}\n{name.kind}\n{expires}"
        digest = hmac.new(self._key, text.encode(), hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def file_of(kind: PictureKind) -> str:
    """The last part of the path, such as `still.jpg`."""
    return f"{kind}.{ENDINGS[kind]}"
