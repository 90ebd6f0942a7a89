"""The limits that the settings give."""

from __future__ import annotations

from structlog.testing import capture_logs

from relay.guard.client_address import ClientAddress
from relay.guard.guard import Guard, SessionLimits
from relay.settings.settings import Settings

HERE = ClientAddress.parse("192.0.2.1")


def test_the_settings_limit_everything() -> None:
    settings = Settings(max_subscriptions=3, max_streams_per_user=2, alert_rate="7/minute")
    with capture_logs() as logs:
        guard = Guard.build(settings)
    limits = guard.session_limits
    assert (limits.max_subscriptions, limits.max_streams) == (3, 2)
    assert limits.register_rate is not None
    assert limits.alert_rate is not None
    assert limits.alert_rate.text == "7/minute"
    assert guard.connections.caps is not None
    assert guard.connections.caps.connections == settings.max_connections
    assert None not in (guard.connection_rate, guard.failed_auths, guard.renewal_rate)
    assert guard.throttle() is not None
    assert logs == []


def test_the_profile_for_load_lifts_rates_and_caps_and_says_so_but_keeps_the_lists() -> None:
    settings = Settings(
        profile="load", deny_networks=("192.0.2.0/24",), trusted_proxies=("10.0.0.0/8",)
    )
    with capture_logs() as logs:
        guard = Guard.build(settings)
    assert guard.session_limits == SessionLimits()
    assert guard.connections.caps is None
    assert (guard.connection_rate, guard.failed_auths, guard.renewal_rate) == (None, None, None)
    assert guard.throttle() is None
    assert not guard.access.allows(HERE)
    assert guard.proxies.trusted
    (log,) = logs
    assert log["log_level"] == "warning"
    assert log["event"].startswith("PROFILE LOAD")
