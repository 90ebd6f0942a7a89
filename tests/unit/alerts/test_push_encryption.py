"""Messages for browsers are encrypted by RFC 8291, and relay says who it is by RFC 8292."""

from __future__ import annotations

import json
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key

from relay.alerts.targets.web_push.coding import (
    MAX_PLAINTEXT_BYTES,
    RECORD_SIZE,
    base64url,
    from_base64url,
)
from relay.alerts.targets.web_push.encryption import BadSubscriptionKeys, SubscriptionKeys, encrypt
from relay.alerts.targets.web_push.vapid import (
    MAX_VAPID_TOKENS,
    TOKEN_SECONDS,
    VapidKey,
    new_private_key,
)
from relay.errors import ConfigError
from tests.integration.push_service import PushBrowser, check_vapid, decoded

# RFC 8291, section 5 and appendix A.
PLAINTEXT = b"When I grow up, I want to be a watermelon"
SENDER_KEY = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"
P256DH = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
AUTH = "BTBZMqHH6r4Tts7J_aSIgg"
SALT = "DGv6ra1nlYgDCS1FRnbzlw"
MESSAGE = (
    "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6T"
    "lzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4"
    "a-fN"
)
# RFC 8292 has no key of its own; this is that of RFC 8291's sender.
PUBLIC_KEY = (
    "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8"
)
ENDPOINT = "https://push.example.org/push/x"


def test_the_example_of_the_rfc_comes_out_byte_by_byte() -> None:
    number = int.from_bytes(from_base64url(SENDER_KEY), "big")
    body = encrypt(
        PLAINTEXT,
        SubscriptionKeys.parse(P256DH, AUTH),
        sender_key=derive_private_key(number, SECP256R1()),
        salt=from_base64url(SALT),
    )
    assert base64url(body) == MESSAGE


@pytest.mark.parametrize("length", [0, 1, 500, MAX_PLAINTEXT_BYTES])
def test_the_browser_alone_reads_a_message(length: int) -> None:
    browser, other = PushBrowser(ENDPOINT), PushBrowser(ENDPOINT)
    keys = SubscriptionKeys.parse(**browser.subscription["keys"])
    first, second = encrypt(b"x" * length, keys), encrypt(b"x" * length, keys)
    assert browser.decrypt(first) == browser.decrypt(second) == b"x" * length
    assert first[:16] != second[:16]
    assert first[21:86] != second[21:86]  # another key for each
    assert len(first) <= RECORD_SIZE
    with pytest.raises(Exception, match=r"^$"):
        other.decrypt(first)


def test_a_message_that_push_services_may_refuse_is_not_made() -> None:
    keys = SubscriptionKeys.parse(**PushBrowser(ENDPOINT).subscription["keys"])
    with pytest.raises(ValueError, match="at most 3993 bytes"):
        encrypt(b"x" * (MAX_PLAINTEXT_BYTES + 1), keys)


BAD_KEYS = {
    "no point of the curve": ({"p256dh": base64url(b"\x04" + b"\x01" * 64)}, "curve P-256"),
    "the point at infinity": ({"p256dh": base64url(b"\x00")}, "65 bytes"),
    "a compressed point": ({"p256dh": base64url(b"\x02" + b"\x01" * 32)}, "65 bytes"),
    "a hybrid point": ({"p256dh": base64url(b"\x06" + decoded(P256DH)[1:])}, "uncompressed"),
    "too long": ({"p256dh": P256DH + "AAAA"}, "65 bytes"),
    "another alphabet": ({"p256dh": P256DH.replace("_", "/")}, "base64url"),
    "half a byte": ({"p256dh": P256DH[:-2]}, "base64url"),
    "empty": ({"p256dh": ""}, "65 bytes"),
    "a short secret": ({"auth": AUTH[:-4]}, "16 bytes"),
    "no ASCII": ({"auth": "ключ"}, "base64url"),
}


@pytest.mark.parametrize(("bad", "why"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_keys_to_which_nothing_can_be_encrypted_are_refused(bad: dict[str, str], why: str) -> None:
    keys = {"p256dh": P256DH, "auth": AUTH} | bad
    with pytest.raises(BadSubscriptionKeys, match=why) as caught:
        SubscriptionKeys.parse(**keys)
    assert all(not value or value not in str(caught.value) for value in bad.values())


def test_padding_is_optional() -> None:
    assert SubscriptionKeys.parse(P256DH + "=", AUTH + "==") == SubscriptionKeys.parse(P256DH, AUTH)


def test_a_key_signs_what_push_services_verify() -> None:
    key = VapidKey.parse(SENDER_KEY)
    assert key.public == PUBLIC_KEY
    header = key.authorization(ENDPOINT, "mailto:ops@example.org")
    assert check_vapid(header, "https://push.example.org") == PUBLIC_KEY
    claims = json.loads(decoded(header.split(".")[1]))
    assert claims["sub"] == "mailto:ops@example.org"
    assert "sub" not in json.loads(decoded(key.authorization("https://a:8/b", None).split(".")[1]))
    check_vapid(key.authorization("https://a:8/b", None), "https://a:8")


def test_a_token_is_used_until_half_of_its_life_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    key = VapidKey.parse(new_private_key())
    first = key.authorization(ENDPOINT, None)
    now += TOKEN_SECONDS / 2 - 1
    assert key.authorization("https://push.example.org/another", None) == first
    now += 2
    assert key.authorization(ENDPOINT, None) != first
    second = key.authorization(ENDPOINT, None)
    now -= 30 * 24 * 3600  # the clock was wrong
    assert key.authorization(ENDPOINT, None) != second


def test_tokens_are_kept_for_so_many_services_only() -> None:
    key = VapidKey.parse(SENDER_KEY)
    for number in range(MAX_VAPID_TOKENS + 5):
        key.authorization(f"https://{number}.notify.windows.com/x", None)
    assert len(key._tokens) == MAX_VAPID_TOKENS


@pytest.mark.parametrize(
    "private", ["", "x", "A" * 43, "_" * 43, SENDER_KEY[:-1], SENDER_KEY + "AA", "ключ"]
)
def test_what_is_no_private_key_is_refused_and_not_shown(private: str) -> None:
    with pytest.raises(ConfigError, match="private key of P-256") as caught:
        VapidKey.parse(private)
    assert not private or private not in str(caught.value)


def test_private_keys_are_not_printed() -> None:
    private = new_private_key()
    key = VapidKey.parse(private)
    key.authorization(ENDPOINT, None)
    assert private not in repr(key)
    assert repr(key) == f"VapidKey(public={key.public!r})"
    assert repr(SubscriptionKeys.parse(P256DH, AUTH)) == "SubscriptionKeys()"
