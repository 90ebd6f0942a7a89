"""The URLs that webhooks may have."""

from __future__ import annotations

import pytest

from relay.errors import ConfigError
from relay.outgoing.webhook_client import check_webhook_url


@pytest.mark.parametrize(
    "url", ["https://app.example.org/alerts?a=b", "https://[2606:4700::1111]:8443/", "https://x"]
)
def test_an_address_over_https_is_fine(url: str) -> None:
    check_webhook_url(url, plain=False)
    check_webhook_url(url, plain=True)
    check_webhook_url(url.replace("https", "http"), plain=True)
    with pytest.raises(ConfigError, match="must begin with https"):
        check_webhook_url(url.replace("https", "http"), plain=False)


@pytest.mark.parametrize(
    "url",
    [
        *("", "app.example.org", "https://", "https:///alerts", "ftp://x/", "file:///etc/passwd"),
        *("https://x:y@z/", "https://x@z/", "https://x/#y", "https://x/ y", "https://x/\r\nA: b"),
        *("https://x:99999/", "https://[::1/", "https://é.example.org/", f"https://x/{'y' * 2048}"),
    ],
)
def test_what_is_no_address_to_post_to_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        check_webhook_url(url, plain=True)
