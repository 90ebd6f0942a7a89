"""The settings: their names, defaults, what they must be, one by one and together. Floor 0."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import attrs
from attrs import frozen
from msgspec import Meta

from relay.errors import Clash, ConfigError
from relay.limit_settings import (
    Many,
    Networks,
    Origins,
    Plenty,
    Rate,
    check_networks,
    check_origins,
    limit_clashes,
)
from relay.token_settings import (
    AlgorithmNames,
    Moment,
    Secret,
    Text,
    WebUrl,
    check_algorithms,
    check_web_url,
    token_clashes,
)

# The title stands for the value in help, the description in errors.
Seconds = Annotated[
    float,
    Meta(gt=0, le=86_400, title="SECONDS", description="seconds, above 0 and up to 86400"),
]
Size = Annotated[
    int, Meta(ge=1024, le=1 << 30, title="BYTES", description="bytes, 1024 to 1073741824")
]
Switch = Annotated[bool, Meta(title="true|false", description="true or false")]
Count = Annotated[int, Meta(ge=1, le=100, title="N", description="a whole number, 1 to 100")]
Days = Annotated[int, Meta(ge=1, le=36_500, title="DAYS", description="days, 1 to 36500")]
Name = Annotated[
    str, Meta(min_length=1, max_length=63, title="NAME", description="1 to 63 characters")
]
Bind = Annotated[str, Meta(title="HOST:PORT", description="HOST:PORT, such as localhost:3000")]
Url = Annotated[
    str, Meta(title="URL", description="an address such as postgresql://user@host:5432/name")
]


@frozen
class Address:
    """Where to listen; port 0 lets the system choose."""

    host: str
    port: int


def parse_bind(bind: str) -> tuple[Address, ...]:
    """The addresses that `bind` names: two for localhost, which is IPv4 and IPv6, else one."""
    host, colon, port = bind.rpartition(":")
    if not colon:
        raise ConfigError(f"bind: expected {expected(Bind)}, not {bind!r}")
    if not host:
        raise ConfigError(
            f"bind: {bind!r} names no host; use 0.0.0.0:{port} for every network,"
            f" or localhost:{port} for this machine only"
        )
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 0xFFFF:
        raise ConfigError(f"bind: expected a port from 0 to 65535, not {port!r} as in {bind!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif re.fullmatch("[0-9a-fA-F:.]*:[0-9a-fA-F:.]*", host):
        raise ConfigError(f"bind: an IPv6 address goes in brackets, as in [{host}]:{port}")
    if not re.fullmatch(r"[^\s/\[\]@]+", host):
        raise ConfigError(f"bind: expected {expected(Bind)}, not {bind!r}")
    hosts = ("127.0.0.1", "::1") if host.lower() == "localhost" else (host,)
    return tuple(Address(host, int(port)) for host in hosts)


def _check_bind(_settings: Settings, _attribute: attrs.Attribute[str], bind: str) -> None:
    parse_bind(bind)


def _check_url(_settings: Settings, attribute: attrs.Attribute[Any], url: str | None) -> None:
    if url is not None and not re.match(r"postgres(ql)?://|\w+\s*=", url):
        raise ConfigError(f"{attribute.name}: expected {expected(Url)}")


def _setting(default: Any, about: str, *, check: Any = None, secret: bool = False) -> Any:
    return attrs.field(
        default=default,
        validator=check,
        repr=(lambda value: "None" if value is None else "'(hidden)'") if secret else True,
        metadata={"about": about, "secret": secret},
    )


@frozen(kw_only=True)
class Settings:
    """Everything that can be set. Times are seconds, sizes bytes."""

    bind: Bind = _setting(
        "localhost:3000", "HOST:PORT to listen on; phones need 0.0.0.0:3000", check=_check_bind
    )
    database_url: Url | None = _setting(
        None, "The PostgreSQL to use; without it relay runs its own", check=_check_url, secret=True
    )
    listen_url: Url | None = _setting(
        None, "The way past PgBouncer, for LISTEN", check=_check_url, secret=True
    )
    data_dir: Path | None = _setting(None, "Where relay's own PostgreSQL keeps its data")
    postgres_bin: Path | None = _setting(None, "The folder with PostgreSQL's programs")
    database_pool: Count = _setting(4, "Connections to the database")
    statement_timeout: Seconds = _setting(5.0, "A query that takes longer is given up")
    connect_timeout: Seconds = _setting(3.0, "Time to reach the database")
    auth_schema: Name = _setting("public", "The schema of Better Auth's tables")
    auth_user_table: Name = _setting("user", "Better Auth's table of users")
    auth_session_table: Name = _setting("session", "Better Auth's table of sessions")
    session_poll: Seconds = _setting(
        0.5, "Time between looks at live sessions where no trigger tells of logouts"
    )
    auth_secret: Secret | None = _setting(
        None, "Better Auth's secret, to check signed cookies with", secret=True
    )
    jwt_jwks_url: WebUrl | None = _setting(
        None, "Accept JWTs, with the keys that their issuer publishes here", check=check_web_url
    )
    jwt_public_key: Path | None = _setting(None, "Accept JWTs, with this public key in PEM")
    jwt_secret: Secret | None = _setting(
        None, "Accept JWTs, with this secret of 32 bytes or more", secret=True
    )
    jwt_issuer: Text | None = _setting(None, "The iss that a JWT must have")
    jwt_audience: Text | None = _setting(None, "The aud that a JWT must have")
    jwt_algorithms: AlgorithmNames | None = _setting(
        None,
        "What a JWT may be signed by; RS256,ES256,EdDSA, or HS256 with jwt_secret, if not set",
        check=check_algorithms,
    )
    introspection_url: WebUrl | None = _setting(
        None, "Where to ask about tokens that are no sessions", check=check_web_url
    )
    introspection_client_id: Text | None = _setting(None, "As whom to ask there")
    introspection_client_secret: Secret | None = _setting(
        None, "And the password for it", secret=True
    )
    introspection_audience: Text | None = _setting(None, "The aud that such a token must have")
    introspection_cache: Moment = _setting(5.0, "How long an answer about a token is believed")
    tls_certificate: Path | None = _setting(None, "A certificate chain in PEM: speak TLS with it")
    tls_key: Path | None = _setting(None, "Its key, in PEM")
    dev_tls: Switch = _setting(
        default=False, about="Speak TLS with a certificate made here, to try phones and cameras"
    )
    auth_timeout: Seconds = _setting(10.0, "Time from connecting to being authenticated")
    max_message_size: Size = _setting(16 << 20, "The largest message after auth")
    receive_buffer: Size = _setting(256 << 20, "What all clients together may have half sent")
    lossless_buffer: Size = _setting(4 << 20, "What may wait for a viewer that must miss nothing")
    ping_interval: Seconds = _setting(25.0, "Time between pings to a client")
    idle_timeout: Seconds = _setting(120.0, "A client silent for longer is gone")
    stall_timeout: Seconds = _setting(10.0, "A client that takes no byte for longer is cut off")
    offline_grace: Seconds = _setting(5.0, "Time for a producer to come back unnoticed")
    drain_timeout: Seconds = _setting(10.0, "Time for clients to leave when relay stops")
    trusted_proxies: Networks = _setting(
        (), "Proxies whose word on a client's address is taken", check=check_networks
    )
    proxy_protocol: Switch = _setting(
        default=False, about="They begin each connection with a PROXY header, version 1 or 2"
    )
    allow_networks: Networks = _setting(
        (), "Clients come from here only; without it, from anywhere", check=check_networks
    )
    deny_networks: Networks = _setting((), "No client comes from here", check=check_networks)
    allow_origins: Origins = _setting(
        (), "Browsers come from these pages only; without it, from any", check=check_origins
    )
    require_origin: Switch = _setting(
        default=False, about="With allow_origins: nobody comes without an origin, as apps do"
    )
    connection_rate: Rate = _setting("6000/minute", "New connections of one address")
    failed_auth_rate: Rate = _setting("100/minute", "Failed auths of one address, before a ban")
    failed_token_rate: Rate = _setting("5/minute", "Failed auths with one token, before a ban")
    ban_time: Seconds = _setting(60.0, "A ban lasts so long")
    message_rate: Rate = _setting("1000/second", "Messages of one connection, frames included")
    frame_rate: Rate = _setting("240/second", "Frames of one connection")
    byte_rate: Rate = _setting("33554432/second", "Bytes of one connection's messages")
    alert_rate: Rate = _setting("600/minute", "Alerts of one service, or of one user")
    register_rate: Rate = _setting("300/minute", "Registrations of one user")
    renewal_rate: Rate = _setting("60/minute", "Renewals of one user's or service's sessions")
    max_connections: Many = _setting(10_000, "Connections in all")
    max_connections_per_address: Many = _setting(2500, "Connections of one address")
    max_connections_per_user: Many = _setting(100, "Connections of one user")
    crowded_user: Literal["newest-wins", "oldest-wins"] = _setting(
        "newest-wins", "Which connection of a user with too many stays"
    )
    max_unauthenticated: Many = _setting(3000, "Connections that are not authenticated yet")
    max_streams_per_user: Many = _setting(50, "Online streams of one user")
    max_subscriptions: Many = _setting(1000, "Subscriptions of one connection")
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "What is logged")
    log_format: Literal["auto", "console", "json"] = _setting(
        "auto", "How it is logged; auto: console on a terminal, else json"
    )
    audit: Switch = _setting(default=True, about="Keep who did what in the table relay.audit")
    audit_days: Days = _setting(90, "How long it is kept")
    alert_days: Days = _setting(365, "How long alerts are kept")
    alerts_per_stream: Plenty = _setting(100_000, "How many alerts of a stream are kept")
    webhook_networks: Networks = _setting(
        (), "Private networks that webhooks may call, over HTTP too", check=check_networks
    )
    profile: Literal["default", "load"] = _setting("default", "load: for scripted load tests")

    @property
    def addresses(self) -> tuple[Address, ...]:
        return parse_bind(self.bind)

    @property
    def data_folder(self) -> Path:
        """`data_dir`, or the folder for data of the user that runs relay."""
        return self.data_dir or default_data_dir()


def default_data_dir() -> Path:
    """Where data goes when no setting says so."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/relay")
    try:
        Path.home()
    except RuntimeError:
        raise ConfigError("this user has no home folder: say where with data_dir") from None
    import platformdirs  # noqa: PLC0415, rarely needed, and `relay --help` should be quick

    return platformdirs.user_data_path("relay", appauthor=False)


SETTINGS: Mapping[str, attrs.Attribute[Any]] = attrs.fields_dict(Settings)
TYPES = get_type_hints(Settings, include_extras=True)


def clashes(settings: Settings) -> Iterator[Clash]:
    """Settings that do not go together."""
    yield from token_clashes(settings)
    yield from limit_clashes(settings)
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        text = "TLS needs both tls_certificate and tls_key"
        yield Clash(text, ("tls_certificate", "tls_key"))
    if settings.listen_url and not settings.database_url:
        text = "listen_url is another way to the database of database_url: set both"
        yield Clash(text, ("listen_url", "database_url"))
    if settings.ping_interval >= settings.idle_timeout:
        text = (
            f"ping_interval ({settings.ping_interval:g}) must be shorter than idle_timeout"
            f" ({settings.idle_timeout:g}), or quiet clients are taken for dead ones"
        )
        yield Clash(text, ("ping_interval", "idle_timeout"))


def flag(name: str) -> str:
    """How a setting is called on the command line."""
    return f"--{name.replace('_', '-')}"


def placeholder(name: str) -> str:
    """What stands for the value of a setting in help."""
    wanted = TYPES[name]
    if wanted == Path | None:
        return "DIR" if name.endswith(("_dir", "_bin")) else "FILE"
    meta = _meta(wanted)
    return str(meta.title) if meta else "|".join(get_args(wanted))


def expected(wanted: Any) -> str:
    """The words for a type in an error."""
    if wanted == Path | None:
        return "a path"
    if meta := _meta(wanted):
        return str(meta.description)
    return " or ".join(map(repr, get_args(wanted)))


def _meta(wanted: Any) -> Meta | None:
    for part in (wanted, *get_args(wanted)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, Meta):
                return meta
    return None
