from __future__ import annotations

from pathlib import Path

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from relay.settings.settings import Settings
from relay.workers.shares import as_plain, from_plain, settings_of_worker


def test_what_is_limited_for_the_machine_is_divided_and_rounded_up() -> None:
    whole = Settings(max_connections=100, connection_rate="10/minute", rendition_cores=0.6)
    share = settings_of_worker(whole, 3)
    assert share.max_connections == 34
    assert share.connection_rate == "4/minute"
    assert share.failed_auth_rate == whole.failed_auth_rate  # the parent counts
    assert share.rendition_cores == whole.rendition_cores / 3
    assert share.max_unauthenticated == whole.max_unauthenticated
    assert share.max_connections_per_user == whole.max_connections_per_user


@given(st.integers(1, 100))
def test_every_share_is_a_valid_setting(workers: int) -> None:
    whole = Settings(
        max_connections=1, max_connections_per_address=1, reply_buffer=1024, send_buffer=1024
    )
    share = settings_of_worker(whole, workers)
    assert share.max_message_size <= share.receive_buffer
    assert share == from_plain(as_plain(share))


def test_settings_survive_the_way_to_a_worker() -> None:
    settings = Settings(
        data_dir=Path("/srv/relay"),
        trusted_proxies=("10.0.0.0/8",),
        database_url="postgresql://relay:secret@/app",
        auth_user_columns=("id=key",),
        workers=4,
    )
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(as_plain(settings)))
    assert from_plain(plain) == settings
