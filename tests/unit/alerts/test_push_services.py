"""Which URLs belong to the push services of the settings."""

from __future__ import annotations

import pytest

from relay.model.targets.push_service import DEFAULT_PUSH_SERVICES, PushService, push_services_of


@pytest.mark.parametrize(
    "url",
    [
        "https://fcm.googleapis.com/fcm/send/c1KrmpTuRm8:APA91bF",
        "https://FCM.googleapis.com:443/wp/x",
        "https://updates.push.services.mozilla.com/wpush/v2/gAAAA",
        "https://web.push.apple.com/QGuQyavXutnMH",
        "https://wns2-by3p.notify.windows.com/w/?token=BQYAAA%2b",
    ],
)
def test_browsers_have_these_by_default(url: str) -> None:
    assert any(service.covers(url) for service in push_services_of(DEFAULT_PUSH_SERVICES))


@pytest.mark.parametrize(
    "url",
    [
        "http://fcm.googleapis.com/x",
        "https://fcm.googleapis.com:8443/x",
        "https://fcm.googleapis.com:99999/x",
        "https://fcm.googleapis.com./x",
        "https://fcm.googleapis.com.evil.example/x",
        "https://xfcm.googleapis.com/x",
        "https://evil.example/fcm.googleapis.com",
        "https://evil.example#.push.apple.com",
        "https://evil.example\\.push.apple.com/x",
        "https://evil.example%2f.push.apple.com/x",
        "https://evil.example?.push.apple.com",
        "https://push.apple.com/x",
        "https://.push.apple.com/x",
        "https://a..push.apple.com/x",
        "https://notify.windows.com.example/x",
        "https://127.0.0.1/x",
        "https://[::1]/x",
        "https://[::1/x",
        "//fcm.googleapis.com/x",
        "",
    ],
)
def test_nothing_else_is_one(url: str) -> None:
    assert not any(service.covers(url) for service in push_services_of(DEFAULT_PUSH_SERVICES))


@pytest.mark.parametrize(
    ("entry", "url"),
    [
        ("http://127.0.0.1:8090", "http://127.0.0.1:8090/push/x"),
        ("http://localhost", "http://localhost:80/x"),
        ("https://[::1]:8443", "https://[::1]:8443/x"),
        ("push.example.org:8443", "https://push.example.org:8443/x"),
        ("*.example.org", "https://a.b.example.org/x"),
    ],
)
def test_an_operator_may_name_others(entry: str, url: str) -> None:
    [service] = push_services_of([entry])
    assert service.covers(url)
    assert not service.covers(url.replace("://", "://other.")) or entry.startswith("*")
    assert not service.covers(url.replace("http", "ws", 1))


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.com",
        "*.localhost",
        "a.*.org",
        "ftp://a.org",
        "a.org/path",
        "a b",
        "a.org:0",
        "a.org:65536",
    ],
)
def test_what_is_no_service_is_none(entry: str) -> None:
    assert PushService.parse(entry) is None


def test_none_turns_it_off() -> None:
    assert push_services_of(["none"]) == ()
