from __future__ import annotations

import json
import os
import tomllib
from errno import ENOENT
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import ConfigError
from relay.settings.loading import load
from relay.settings.report import describe
from relay.settings.settings import (
    SETTINGS,
    BindAddress,
    Settings,
    flag,
    parse_bind,
)

PASSWORD = "5ecret-passw0rd"


def refused(
    flags: dict[str, str | None] | None = None,
    *,
    config_file: Path | None = None,
    environment: dict[str, str] | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(
            flags,
            config_file=str(config_file) if config_file else None,
            environment=environment or {},
        )
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "relay.toml"


def test_localhost_is_both_loopback_addresses() -> None:
    assert parse_bind("localhost:3000") == (
        BindAddress("127.0.0.1", 3000),
        BindAddress("::1", 3000),
    )


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("0.0.0.0:3000", BindAddress("0.0.0.0", 3000)),
        ("[::1]:3000", BindAddress("::1", 3000)),
        ("[::]:0", BindAddress("::", 0)),
        ("relay.example.org:65535", BindAddress("relay.example.org", 65535)),
    ],
)
def test_a_bind_names_a_host_and_a_port(bind: str, address: BindAddress) -> None:
    assert parse_bind(bind) == (address,)


@pytest.mark.parametrize(
    ("bind", "hint"),
    [
        (":3000", "use 0.0.0.0:3000 to listen on every network"),
        ("3000", "such as localhost:3000"),
        ("localhost", "such as localhost:3000"),
        ("", "such as localhost:3000"),
        ("localhost:", "a port from 0 to 65535"),
        ("localhost:65536", "a port from 0 to 65535"),
        ("localhost:-1", "a port from 0 to 65535"),
        ("localhost:²", "a port from 0 to 65535"),
        ("localhost:" + "9" * 5000, "a port from 0 to 65535"),
        ("::1:3000", "[::1]:3000"),
        ("[]:3000", "such as localhost:3000"),
        ("http://localhost:3000", "such as localhost:3000"),
        ("local host:3000", "such as localhost:3000"),
    ],
)
def test_a_wrong_bind_is_explained(bind: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bind(bind)
    assert hint in str(caught.value)


@given(st.text())
def test_any_text_is_a_bind_or_a_config_error(bind: str) -> None:
    try:
        addresses = parse_bind(bind)
    except ConfigError:
        return
    assert all(address.host and 0 <= address.port <= 65535 for address in addresses)


def test_flags_win_over_the_environment_over_the_file_over_defaults(file: Path) -> None:
    file.write_text('bind = "h:1"\nlog_level = "debug"\ndatabase_pool = 9\n')
    loaded = load(
        {"bind": "h:3", "log_level": None},
        config_file=str(file),
        environment={"RELAY_BIND": "h:2", "RELAY_LOG_LEVEL": "error"},
    )
    settings = loaded.settings
    assert settings == Settings(bind="h:3", log_level="error", database_pool=9)
    assert loaded.sources == {
        "bind": "--bind",
        "log_level": "RELAY_LOG_LEVEL",
        "database_pool": f"{file}:3",
    }


def test_the_environment_can_name_the_file_and_a_flag_another(file: Path, tmp_path: Path) -> None:
    file.write_text('bind = "h:1"')
    other = tmp_path / "other.toml"
    other.write_text('bind = "h:2"')
    environment = {"RELAY_CONFIG": str(file)}
    assert load(environment=environment).settings.bind == "h:1"
    assert load(config_file=str(other), environment=environment).settings.bind == "h:2"


JWT_KEYS = {"jwt_jwks_url": "RS256", "jwt_public_key": "ES256", "jwt_secret": "HS256"}


@pytest.mark.parametrize("jwt_key", JWT_KEYS)
def test_every_setting_has_the_same_name_everywhere(file: Path, jwt_key: str) -> None:
    values = {
        "bind": "0.0.0.0:8080",
        "public_url": "https://relay.example.org",
        "workers": 4,
        "database_url": "postgresql://db/relay",
        "listen_url": "postgresql://direct/relay",
        "data_dir": "/srv/relay",
        "postgres_bin": "/usr/lib/postgresql/18/bin",
        "database_pool": 8,
        "statement_timeout": 1.5,
        "connect_timeout": 1.5,
        "cluster_bind": "10.0.0.5:3100",
        "cluster_advertise": "relay-1:3100",
        "cluster_tls": "off",
        "auth_schema": "auth",
        "auth_user_table": "users",
        "auth_session_table": "sessions",
        "auth_user_columns": ["id=key"],
        "auth_session_columns": ["token=sessionToken", "expiresAt=expires"],
        "auth_time_zone": "Europe/Berlin",
        "auth_token_storage": "sha256-hex",
        "auth_session_url": "https://app.example/api/auth/get-session",
        "auth_session_cache": 1.5,
        "auth_session_recheck": 1.5,
        "unknown_token_rate": "7/hour",
        "auth_secret": "s" * 32,
        "jwt_jwks_url": "https://id.example.org/jwks",
        "jwt_public_key": "/etc/relay/issuer.pem",
        "jwt_secret": "s" * 32,
        "jwt_issuer": "https://id.example.org",
        "jwt_audience": "relay",
        "jwt_algorithms": JWT_KEYS[jwt_key],
        "introspection_url": "https://id.example.org/introspect",
        "introspection_client_id": "relay",
        "introspection_client_secret": "s" * 32,
        "introspection_audience": "relay",
        "introspection_cache": 1.5,
        "tls_certificate": "/etc/relay/chain.pem",
        "tls_key": "/etc/relay/key.pem",
        "dev_tls": True,
        "hsts_max_age": 0,
        "auth_timeout": 1.5,
        "max_message_size": 2048,
        "receive_buffer": 4096,
        "frame_buffer": 7_000_000,
        "frame_buffer_per_user": 7_000_000,
        "lossless_buffer": 4096,
        "renditions": "off",
        "rendition_cores": 0.25,
        "layers_for_old_clients": "off",
        "ping_interval": 1.5,
        "idle_timeout": 2.5,
        "stall_timeout": 1.5,
        "session_poll": 1.5,
        "offline_grace": 1.5,
        "drain_timeout": 1.5,
        "trusted_proxies": ["10.0.0.1", "2001:db8::/32"],
        "proxy_protocol": True,
        "base_path": "/apps/relay",
        "allow_networks": ["10.0.0.0/8"],
        "deny_networks": ["192.0.2.0/24", "::1"],
        "allow_origins": ["https://example.org", "capacitor://localhost"],
        "require_origin": True,
        "frame_ancestors": ["https://app.example.org"],
        "connection_rate": "7/second",
        "failed_auth_rate": "7/hour",
        "failed_token_rate": "7/minute",
        "ban_time": 1.5,
        "message_rate": "7/minute",
        "frame_rate": "7/minute",
        "byte_rate": "7/minute",
        "alert_rate": "7/minute",
        "register_rate": "7/minute",
        "stream_list_rate": "7/minute",
        "renewal_rate": "7/minute",
        "request_rate": "7/minute",
        "send_buffer": 4096,
        "reply_buffer": 4 << 20,
        "max_connections": 7,
        "max_connections_per_address": 7,
        "max_connections_per_user": 7,
        "crowded_user": "oldest-wins",
        "max_unauthenticated": 7,
        "max_streams_per_user": 7,
        "max_subscriptions": 7,
        "max_subscriptions_per_user": 7,
        "reclaim_streams_after": "7d",
        "log_level": "warning",
        "log_format": "json",
        "audit": False,
        "audit_days": 7,
        "alert_days": 7,
        "alerts_per_stream": 700,
        "alert_bytes": 7 << 20,
        "alert_bytes_per_user": 7 << 20,
        "webhook_networks": ["10.0.0.0/8"],
        "alert_stills": "all",
        "clip_streams": ["front-door", "yard-*"],
        "clip_before": 7,
        "clip_after": 7,
        "clip_fps": 7,
        "clip_standby": True,
        "clip_buffer": 7 << 20,
        "picture_dir": "/var/lib/pictures",
        "picture_s3": "https://s3.example.org/bucket/relay",
        "picture_s3_region": "eu-central-1",
        "picture_s3_credentials": "/etc/relay/s3",
        "picture_days": 7,
        "picture_bytes": 7 << 20,
        "picture_bytes_per_user": 7 << 20,
        "mqtt_topic": "home/relay",
        "push_services": ["*.push.example.org", "http://127.0.0.1:8090"],
        "push_key": "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94",
        "push_contact": "mailto:ops@example.org",
        "profile": "load",
    }
    assert values.keys() == SETTINGS.keys()
    for other in JWT_KEYS.keys() - {jwt_key}:  # there can be only one
        del values[other]
    file.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in values.items()))
    texts = {
        name: ", ".join(value) if isinstance(value, list) else str(value)
        for name, value in values.items()
    }
    from_file = load(config_file=str(file), environment={}).settings
    from_flags = load(dict(texts), environment={}).settings
    from_environment = load(
        environment={f"RELAY_{name.upper()}": text for name, text in texts.items()}
    ).settings
    assert from_file == from_flags == from_environment
    assert all(getattr(from_file, name) != defaults()[name] for name in values)


def defaults() -> dict[str, object]:
    return {name: setting.default for name, setting in SETTINGS.items()}


@pytest.mark.parametrize(
    "name",
    ["receive_buffer", "send_buffer", "reply_buffer", "frame_buffer", "frame_buffer_per_user"],
)
def test_what_many_clients_share_may_be_larger_than_a_message(name: str) -> None:
    settings = load({name: "17179869184"}, environment={}).settings
    assert getattr(settings, name) == 16 << 30


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("database_pool", "many", "a whole number from 1 to 100, not 'many'"),
        ("database_pool", "0", "a whole number from 1 to 100, not '0'"),
        ("auth_timeout", "nan", "a number of seconds above 0 and up to 86400, not 'nan'"),
        ("auth_timeout", "inf", "a number of seconds above 0 and up to 86400, not 'inf'"),
        ("auth_timeout", "0", "a number of seconds above 0 and up to 86400, not '0'"),
        ("max_message_size", "16 MiB", "a number of bytes from 1024 to 1073741824, not '16 MiB'"),
        ("frame_buffer", "2 GiB", "a number of bytes from 1024 to 1099511627776, not '2 GiB'"),
        ("log_format", "xml", "'auto', 'console' or 'json', not 'xml'"),
        ("auth_schema", "x" * 64, "1 to 63 characters"),
        ("data_dir", "~nobody-of-this-name/x", "a path, not '~nobody-of-this-name/x'"),
        ("bind", "3000", "HOST:PORT, such as localhost:3000, not '3000'"),
        ("cluster_bind", "3100", "HOST:PORT, such as localhost:3000, not '3100'"),
        ("cluster_advertise", "3100", "HOST:PORT, such as localhost:3000, not '3100'"),
    ],
)
def test_a_wrong_value_is_explained_with_where_it_came_from(
    name: str, text: str, expected: str
) -> None:
    variable = f"RELAY_{name.upper()}"
    assert f"{name}: expected {expected}" in refused({name: text})
    assert refused({name: text}).endswith(f"({flag(name)})")
    assert refused(environment={variable: text}).endswith(f"({variable})")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("allow_networks", "10.0.0.1/8", "a list of networks such as 10.0.0.0/8"),
        ("allow_networks", "10.0.0.1/8", "10.0.0.1/8 has host bits set"),
        ("deny_networks", "10.0.0.0/8,here", "'here' does not appear to be"),
        ("trusted_proxies", "::ffff:10.0.0.0/104", "is IPv4 written as IPv6"),
        ("allow_origins", "https://a.example/b", "without a path, not 'https://a.example/b'"),
        ("allow_origins", "*", "a list of web origins such as https://example.org"),
        ("frame_ancestors", "https://a.example/b", "a list of origins of web pages"),
        ("frame_ancestors", "https://a.example;b", "without a path, not 'https://a.example;b'"),
        ("frame_ancestors", "null", "a list of origins of web pages"),
        ("frame_ancestors", "*", "a list of origins of web pages"),
        ("base_path", "relay", "a path such as /relay"),
        ("base_path", "/relay/", "with no slash at the end, not '/relay/'"),
        ("base_path", "/../relay", "a path such as /relay"),
        ("connection_rate", "0/minute", "a number per second, minute or hour, such as 100/minute"),
        ("connection_rate", "10/day", "such as 100/minute, not '10/day'"),
        ("connection_rate", "10/minute\n", "such as 100/minute"),
    ],
)
def test_a_wrong_list_or_rate_is_explained(name: str, text: str, expected: str) -> None:
    message = refused({name: text})
    assert message.startswith(f"{name}: ")
    assert expected in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("database_pool = '8'", "database_pool: expected a whole number from 1 to 100, not '8'"),
        ("database_pool = 8.5", "database_pool: expected a whole number from 1 to 100, not 8.5"),
        ("database_pool = true", "database_pool: expected a whole number from 1 to 100, not True"),
        ("data_dir = 8", "data_dir: expected a path, not 8"),
        ("log_level = ['debug']", "log_level: expected 'debug', 'info'"),
        ("bind = 3000", "bind: expected HOST:PORT"),
        ("allow_networks = '::/0'", "allow_networks: expected a list of networks such as 10.0.0.0"),
        ("allow_networks = [10]", "allow_networks: expected a list of networks"),
    ],
)
def test_the_types_of_the_file_are_taken_at_their_word(
    line: str, expected: str, file: Path
) -> None:
    file.write_text(line)
    message = refused(config_file=file)
    assert expected in message
    assert message.endswith(f"({file}:1)")


@pytest.mark.parametrize("name", ["database_url", "listen_url"])
def test_the_address_of_the_database_is_in_no_text(name: str) -> None:
    secret = f"postgresql://relay:{PASSWORD}@db/relay"
    loaded = load({name: secret, "database_url": secret}, environment={})
    assert getattr(loaded.settings, name) == secret
    assert PASSWORD not in repr(loaded)
    assert PASSWORD not in "\n".join(describe(loaded))
    assert PASSWORD not in refused({name: PASSWORD})
    assert "expected a URL such as postgresql://" in refused({name: PASSWORD})


def test_an_unknown_name_brings_the_nearest_known_one(file: Path) -> None:
    file.write_text("data_dri = '/srv'")
    assert refused(config_file=file) == (
        f"unknown setting data_dri in {file}:1; did you mean data_dir?"
    )
    assert refused(environment={"RELAY_BNID": "x"}) == (
        "unknown setting RELAY_BNID in the environment; did you mean RELAY_BIND?"
    )
    assert "`relay config show` lists all settings" in refused(environment={"RELAY_QQ": "x"})
    file.write_text("[relay]\nbind = 'h:1'")
    assert "unknown setting relay in" in refused(config_file=file)


def test_an_empty_variable_is_not_set() -> None:
    assert load(environment={"RELAY_DATABASE_URL": "", "RELAY_BIND": ""}).settings == Settings()


def test_the_variables_of_a_kubernetes_service_named_relay_are_not_settings() -> None:
    environment = {
        "RELAY_SERVICE_HOST": "10.0.0.1",
        "RELAY_SERVICE_PORT": "3000",
        "RELAY_SERVICE_PORT_HTTP": "3000",
        "RELAY_PORT": "tcp://10.0.0.1:3000",
        "RELAY_PORT_3000_TCP": "tcp://10.0.0.1:3000",
        "RELAY_PORT_3000_TCP_ADDR": "10.0.0.1",
    }
    assert load(environment=environment).sources == {}
    assert "unknown setting RELAY_PORT" in refused(environment={"RELAY_PORT": "3000"})


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"bind = [\nb", "at line 2"), (b"bind = '\xff'", "utf-8"), (None, "No such file")],
)
def test_a_file_that_cannot_be_read_is_explained(
    content: bytes | None, why: str, file: Path
) -> None:
    if content is not None:
        file.write_bytes(content)
    message = refused(config_file=file)
    assert message.startswith(f"cannot read the settings file {file}: ")
    assert why in message


def test_paths_of_the_file_start_where_the_file_is(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('data_dir = "data"')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", "/home/ana")
    assert load(config_file="../relay.toml", environment={}).settings.data_dir is not None
    assert load(config_file=str(file), environment={}).settings.data_dir == tmp_path / "data"
    assert load({"data_dir": "data"}, environment={}).settings.data_dir == elsewhere / "data"
    home = load({"data_dir": "~/data"}, environment={}).settings.data_dir
    assert home == Path("/home/ana/data")


TOKEN_SECRETS = ("auth_secret", "jwt_secret", "introspection_client_secret")
SECRET = "5ecret-" * 5
ISSUER = {"jwt_issuer": "https://id.example.org", "jwt_audience": "relay"}
JWKS: dict[str, str | None] = {"jwt_jwks_url": "https://id.example.org/jwks", **ISSUER}
SHARED: dict[str, str | None] = {"jwt_secret": SECRET, **ISSUER}
INTROSPECTION: dict[str, str | None] = {
    "introspection_url": "https://id.example.org/introspect",
    "introspection_client_id": "relay",
    "introspection_client_secret": SECRET,
}


@pytest.mark.parametrize("name", TOKEN_SECRETS)
def test_secrets_about_tokens_are_in_no_text(name: str) -> None:
    loaded = load({**SHARED, **INTROSPECTION, name: SECRET}, environment={})
    assert getattr(loaded.settings, name) == SECRET
    assert "5ecret" not in repr(loaded)
    assert "5ecret" not in "\n".join(describe(loaded))
    assert "5ecret" not in refused({**SHARED, name: SECRET, "jwt_algorithms": "RS256"})
    assert "5ecret" not in refused({name: ""})
    assert f"{name}: expected a secret" in refused({name: ""})


@pytest.mark.parametrize(
    "url",
    [
        "https://id.example.org",
        "https://id.example.org:8443/realms/a/protocol/openid-connect/certs?x=1",
        "http://localhost:3001/api/auth/jwks",
        "http://127.0.0.1/jwks",
        "http://127.8.9.10:80/jwks",
        "http://[::1]:3001/jwks",
        "https://[2001:db8::1]/jwks",
        "https://id_provider/jwks",
    ],
)
def test_keys_come_over_tls_or_from_this_machine(url: str) -> None:
    assert load({**JWKS, "jwt_jwks_url": url}, environment={}).settings.jwt_jwks_url == url


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://id.example.org/jwks", "http:// is allowed for this machine only"),
        ("http://localhost.example.org/jwks", "http:// is allowed for this machine only"),
        ("http://127.0.0.1.example.org/jwks", "http:// is allowed for this machine only"),
        ("http://0.0.0.0/jwks", "http:// is allowed for this machine only"),
        ("ftp://localhost/jwks", "expected https://"),
        ("id.example.org/jwks", "such as https://id.example.org/path"),
        ("https://", "such as https://id.example.org/path"),
        ("https://id.example.org:99999/", "such as https://id.example.org/path"),
        ("https://[::1/", "such as https://id.example.org/path"),
        ("https://id example.org/", "such as https://id.example.org/path"),
        ("https://id.example.org/\n", "such as https://id.example.org/path"),
        (f"https://{'x' * 64}.example.org/", "such as https://id.example.org/path"),
        ("https://idé.example.org/", "such as https://id.example.org/path"),
        (f"https://relay:{PASSWORD}@id.example.org/", "ends up in logs"),
        (f"http://{PASSWORD}@localhost/", "ends up in logs"),
    ],
)
@pytest.mark.parametrize("name", ["jwt_jwks_url", "introspection_url"])
def test_an_address_that_would_not_do_is_explained(name: str, url: str, why: str) -> None:
    message = refused({**JWKS, **INTROSPECTION, name: url})
    assert message.startswith(f"{name}: ")
    assert why in message
    assert message.endswith(f"({flag(name)})")
    assert PASSWORD not in message


@given(st.text())
def test_any_text_is_an_address_or_a_config_error(url: str) -> None:
    try:
        load({**JWKS, "jwt_jwks_url": url}, environment={})
    except ConfigError:
        return
    assert url.lower().startswith(("http://", "https://"))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"jwt_issuer": "x"}, "jwt_issuer needs a key that verifies JWTs: set one of jwt_jwks_url"),
        ({"jwt_audience": "x"}, "jwt_audience needs a key"),
        ({"jwt_algorithms": "RS256"}, "jwt_algorithms needs a key"),
        ({**JWKS, "jwt_secret": SECRET}, "set only one of jwt_jwks_url, jwt_secret"),
        ({**JWKS, "jwt_public_key": "x.pem"}, "set only one of jwt_jwks_url, jwt_public_key"),
        ({**SHARED, "jwt_issuer": None}, "jwt_secret needs jwt_issuer"),
        ({**JWKS, "jwt_audience": None}, "jwt_jwks_url needs jwt_audience"),
        ({**JWKS, "jwt_algorithms": "RS256,none"}, "'none' is not one of HS256, "),
        ({**JWKS, "jwt_algorithms": "rs256"}, "'rs256' is not one of HS256, "),
        ({**JWKS, "jwt_algorithms": " , "}, "expected names of algorithms"),
        ({**JWKS, "jwt_algorithms": "RS256 HS256"}, "HS256 needs jwt_secret"),
        ({**SHARED, "jwt_algorithms": "HS256,RS256"}, "RS256 needs a public key"),
        ({**SHARED, "jwt_secret": "x" * 31}, "HS256 needs a secret of at least 32 bytes"),
        ({**SHARED, "jwt_algorithms": "HS512"}, "HS512 needs a secret of at least 64 bytes"),
        (
            {"introspection_url": "https://id.example.org/"},
            "introspection also needs introspection_client_id and introspection_client_secret",
        ),
        ({"introspection_audience": "x"}, "introspection also needs introspection_url and"),
        (
            {**INTROSPECTION, "introspection_url": None},
            "introspection also needs introspection_url",
        ),
        (
            {**INTROSPECTION, "introspection_cache": "301"},
            "a number of seconds from 0 (off) to 300",
        ),
    ],
)
def test_ways_to_verify_that_lack_something_are_refused(
    flags: dict[str, str | None], why: str
) -> None:
    assert why in refused(flags)


@pytest.mark.parametrize("flags", [JWKS, SHARED, INTROSPECTION, {**JWKS, **INTROSPECTION}])
def test_ways_to_verify_that_lack_nothing_are_accepted(flags: dict[str, str | None]) -> None:
    load(flags, environment={})


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("relay-1:0", "other machines need a port above 0"),
        ("0.0.0.0:3100", "0.0.0.0 is no address to connect to"),
        ("[::]:3100", ":: is no address to connect to"),
        (":3100", "has no host"),
    ],
)
def test_what_others_connect_to_is_one_address(address: str, why: str) -> None:
    others = {"cluster_bind": "0.0.0.0:3100", "database_url": "postgresql://db/relay"}
    message = refused({**others, "cluster_advertise": address})
    assert message.startswith("cluster_advertise: ")
    assert why in message
    load({**others, "cluster_advertise": "relay-1:3100"}, environment={})


def test_a_cluster_listens_where_it_is_told() -> None:
    url = "postgresql://db/relay"
    settings = load({"cluster_bind": "[::]:0", "database_url": url}, environment={}).settings
    assert settings.cluster_addresses == (BindAddress("::", 0),)
    assert Settings().cluster_addresses == ()


def test_settings_that_do_not_go_together_are_refused() -> None:
    assert "listen_url needs database_url" in refused({"listen_url": "postgresql://db/relay"})
    assert "cluster_bind needs database_url" in refused({"cluster_bind": "10.0.0.5:3100"})
    alone = {"cluster_advertise": "relay-1:3100", "database_url": "postgresql://db/relay"}
    assert "cluster_advertise needs cluster_bind" in refused(dict(alone))
    assert "must be shorter than idle_timeout" in refused({"ping_interval": "120"})
    assert "proxy_protocol needs trusted_proxies" in refused({"proxy_protocol": "true"})
    assert "require_origin needs allow_origins" in refused({"require_origin": "true"})


def test_what_show_prints_is_a_file_that_gives_the_same_settings(file: Path) -> None:
    flags = {"data_dir": '/srv/a "b" \\c\n', "auth_schema": "käse", "bind": "[::]:0"}
    flags |= {"deny_networks": "10.0.0.0/8, ::1"}
    loaded = load(dict(flags), environment={})
    text = "\n".join(describe(loaded))
    tomllib.loads(text)
    file.write_text(text)
    assert load(config_file=str(file), environment={}).settings == loaded.settings
    assert 'bind = "[::]:0"  # --bind' in text


def test_data_goes_to_the_user_s_own_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/ana")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    folder = Settings().data_folder
    assert folder.is_relative_to("/home/ana")
    assert folder.name == "relay"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert Settings().data_folder == Path("/var/lib/relay")
    assert Settings(data_dir=Path("/srv")).data_folder == Path("/srv")


def test_a_user_without_a_home_has_to_say_where_data_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1_234_567)
    monkeypatch.setattr("os.getuid", lambda: 1_234_567)
    monkeypatch.delenv("HOME", raising=False)
    with pytest.raises(ConfigError, match="data_dir"):
        _ = Settings().data_folder


def test_a_folder_that_was_removed_matters_to_relative_paths_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def getcwd() -> NoReturn:
        raise FileNotFoundError(ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "getcwd", getcwd)
    assert load({"data_dir": "/srv"}, environment={}).settings.data_dir == Path("/srv")
    with pytest.raises(ConfigError, match=r"the current folder cannot be used .*: change to"):
        load({"data_dir": "data"}, environment={})
