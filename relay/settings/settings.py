"""The settings: their names, types, defaults and descriptions."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import attrs
from attrs import frozen
from msgspec import Meta

from relay.errors import ConfigError
from relay.model.targets.push_service import DEFAULT_PUSH_SERVICES
from relay.settings.columns import Columns, TimeZone, check_columns
from relay.settings.limits import (
    Age,
    AlertLimit,
    BasePath,
    Limit,
    Networks,
    Origins,
    Rate,
    StoredBytes,
    check_base_path,
    check_frame_ancestors,
    check_networks,
    check_origins,
)
from relay.settings.pictures import (
    ClipRate,
    ClipSeconds,
    KeepStills,
    StreamNames,
    check_bucket_url,
    check_streams,
)
from relay.settings.push import (
    Contact,
    PushServices,
    check_contact,
    check_push_key,
    check_push_services,
)
from relay.settings.tokens import (
    AlgorithmNames,
    CacheSeconds,
    Secret,
    Text,
    TokenStorage,
    WebUrl,
    check_algorithms,
    check_endpoint_url,
    check_public_url,
    check_web_url,
)

# Help shows the title in place of the value; errors show the description.
Seconds = Annotated[
    float,
    Meta(
        gt=0, le=86_400, title="SECONDS", description="a number of seconds above 0 and up to 86400"
    ),
]
Size = Annotated[
    int,
    Meta(
        ge=1024, le=1 << 30, title="BYTES", description="a number of bytes from 1024 to 1073741824"
    ),
]
TotalSize = Annotated[
    int,
    Meta(
        ge=1024,
        le=1 << 40,
        title="BYTES",
        description="a number of bytes from 1024 to 1099511627776",
    ),
]
HstsSeconds = Annotated[
    int,
    Meta(
        ge=0,
        le=63_072_000,
        title="SECONDS",
        description="a whole number of seconds from 0 to 63072000",
    ),
]
Switch = Annotated[bool, Meta(title="true|false", description="true or false")]
Count = Annotated[int, Meta(ge=1, le=100, title="N", description="a whole number from 1 to 100")]
Days = Annotated[
    int, Meta(ge=1, le=36_500, title="DAYS", description="a number of days from 1 to 36500")
]
Cores = Annotated[
    float, Meta(ge=0, le=1, title="CORES", description="a number of processor cores from 0 to 1")
]
Name = Annotated[
    str, Meta(min_length=1, max_length=63, title="NAME", description="1 to 63 characters")
]
Topic = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9._~-]{1,64}(/[A-Za-z0-9._~-]{1,64}){0,3}(?!\n)$",
        title="TOPIC",
        description="a topic such as home/relay: up to 4 levels of letters, digits and ._~-",
    ),
]
Bind = Annotated[str, Meta(title="HOST:PORT", description="HOST:PORT, such as localhost:3000")]
Url = Annotated[
    str, Meta(title="URL", description="a URL such as postgresql://user@host:5432/name")
]

WILDCARD_HOSTS = {"0.0.0.0", "::"}  # noqa: S104 (nothing is bound here)
"""They stand for all addresses of a machine."""


@frozen
class BindAddress:
    """An address to listen on; port 0 lets the system choose."""

    host: str
    port: int


def parse_bind(bind: str, setting: str = "bind") -> tuple[BindAddress, ...]:
    """Split HOST:PORT into addresses: two for localhost (IPv4 and IPv6), otherwise one.

    Raises `ConfigError` for anything else, which names the setting.
    """
    host, colon, port = bind.rpartition(":")
    if not colon:
        raise ConfigError(f"{setting}: expected {expected(Bind)}, not {bind!r}")
    if not host:
        raise ConfigError(
            f"{setting}: {bind!r} has no host; use 0.0.0.0:{port} to listen on every network,"
            f" or localhost:{port} for this machine only"
        )
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 0xFFFF:
        raise ConfigError(f"{setting}: expected a port from 0 to 65535, not {port!r} (in {bind!r})")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif re.fullmatch("[0-9a-fA-F:.]*:[0-9a-fA-F:.]*", host):
        raise ConfigError(f"{setting}: an IPv6 address must be in brackets, as in [{host}]:{port}")
    if not re.fullmatch(r"[^\s/\[\]@]+", host):
        raise ConfigError(f"{setting}: expected {expected(Bind)}, not {bind!r}")
    hosts = ("127.0.0.1", "::1") if host.lower() == "localhost" else (host,)
    return tuple(BindAddress(host, int(port)) for host in hosts)


def _check_bind(_settings: Settings, attribute: attrs.Attribute[Any], bind: str | None) -> None:
    if bind is not None:
        parse_bind(bind, attribute.name)


def _check_advertised(
    _settings: Settings, attribute: attrs.Attribute[Any], address: str | None
) -> None:
    if address is None:
        return
    for each in parse_bind(address, attribute.name):
        if not each.port:
            raise ConfigError(f"{attribute.name}: other machines need a port above 0")
        if each.host in WILDCARD_HOSTS:
            raise ConfigError(f"{attribute.name}: {each.host} is no address to connect to")


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
    """All settings. Times are in seconds, sizes in bytes."""

    bind: Bind = _setting(
        "localhost:3000",
        "Address to listen on; 0.0.0.0:3000 lets phones connect",
        check=_check_bind,
    )
    public_url: WebUrl | None = _setting(
        None, "URL at which people reach relay, for links in messages", check=check_public_url
    )
    workers: Count = _setting(1, "Number of worker processes on this machine")
    database_url: Url | None = _setting(
        None,
        "PostgreSQL database to use; if unset, relay runs its own",
        check=_check_url,
        secret=True,
    )
    listen_url: Url | None = _setting(
        None, "PostgreSQL URL for LISTEN that bypasses PgBouncer", check=_check_url, secret=True
    )
    data_dir: Path | None = _setting(
        None, "Directory for relay's own PostgreSQL, the dev_tls certificate, and stills and clips"
    )
    postgres_bin: Path | None = _setting(
        None, "Directory with the PostgreSQL programs, for relay's own PostgreSQL"
    )
    database_pool: Count = _setting(4, "Number of database connections")
    statement_timeout: Seconds = _setting(5.0, "Cancel queries that take longer than this")
    connect_timeout: Seconds = _setting(3.0, "Time to wait for a connection to the database")
    auth_schema: Name = _setting("public", "Schema of the Better Auth tables")
    auth_user_table: Name = _setting("user", "Better Auth table of users")
    auth_user_columns: Columns = _setting(
        (), "Columns of the user table whose names differ from Better Auth's", check=check_columns
    )
    auth_session_table: Name = _setting("session", "Better Auth table of sessions")
    auth_session_columns: Columns = _setting(
        (),
        "Columns of the session table whose names differ from Better Auth's",
        check=check_columns,
    )
    auth_token_storage: TokenStorage = _setting(
        "plain", "How the session table stores tokens: as plain text, or as hashes"
    )
    auth_time_zone: TimeZone = _setting(
        "UTC", "Time zone of Better Auth's timestamp columns without time zone"
    )
    session_poll: Seconds = _setting(
        0.5, "How often to check open sessions when no trigger reports logouts"
    )
    auth_secret: Secret | None = _setting(
        None, "Better Auth secret, for verifying signed session cookies", secret=True
    )
    auth_session_url: WebUrl | None = _setting(
        None,
        "URL of Better Auth's get-session, for sessions outside the database",
        check=check_endpoint_url,
    )
    auth_session_cache: CacheSeconds = _setting(
        5.0, "How long to reuse Better Auth's answer about a token"
    )
    auth_session_recheck: Seconds = _setting(
        60.0, "How often to ask Better Auth whether an open session has ended"
    )
    jwt_jwks_url: WebUrl | None = _setting(
        None, "Accept JWTs signed with a key from this JWKS URL", check=check_web_url
    )
    jwt_public_key: Path | None = _setting(None, "Accept JWTs that this public key verifies (PEM)")
    jwt_secret: Secret | None = _setting(
        None, "Accept JWTs signed with this shared secret of at least 32 bytes", secret=True
    )
    jwt_issuer: Text | None = _setting(None, "Required issuer of a JWT (iss)")
    jwt_audience: Text | None = _setting(None, "Required audience of a JWT (aud)")
    jwt_algorithms: AlgorithmNames | None = _setting(
        None,
        "Accepted signature algorithms; if unset, RS256,ES256,EdDSA, or HS256 with jwt_secret",
        check=check_algorithms,
    )
    introspection_url: WebUrl | None = _setting(
        None, "OAuth endpoint for introspecting tokens that are not sessions", check=check_web_url
    )
    introspection_client_id: Text | None = _setting(None, "OAuth client id for introspection")
    introspection_client_secret: Secret | None = _setting(
        None, "OAuth client secret for introspection", secret=True
    )
    introspection_audience: Text | None = _setting(
        None, "Required audience of an introspected token (aud)"
    )
    introspection_cache: CacheSeconds = _setting(5.0, "How long to reuse an introspection result")
    cluster_bind: Bind | None = _setting(
        None,
        "Address on which other machines of a cluster reach this one; if unset, it is alone",
        check=_check_bind,
    )
    cluster_advertise: Bind | None = _setting(
        None,
        "What other machines connect to; if unset, the address that PostgreSQL sees",
        check=_check_advertised,
    )
    cluster_tls: Literal["on", "off"] = _setting(
        "on", "Whether links between machines are encrypted; the same on all of them"
    )
    tls_certificate: Path | None = _setting(None, "Serve TLS with this certificate chain (PEM)")
    tls_key: Path | None = _setting(None, "Private key of the certificate (PEM)")
    dev_tls: Switch = _setting(
        default=False, about="Serve TLS with a generated certificate, to try phones and cameras"
    )
    hsts_max_age: HstsSeconds = _setting(
        31_536_000, "How long browsers insist on TLS for this host (HSTS); 0 makes them forget it"
    )
    auth_timeout: Seconds = _setting(10.0, "Time a client has to authenticate after connecting")
    max_message_size: Size = _setting(16 << 20, "Largest message an authenticated client may send")
    receive_buffer: TotalSize = _setting(
        256 << 20, "Total bytes of incomplete messages held for all clients"
    )
    send_buffer: TotalSize = _setting(
        64 << 20, "Total bytes of HTTP responses that clients have not read"
    )
    reply_buffer: TotalSize = _setting(
        256 << 20, "Total bytes of replies and alerts that WebSocket clients have not read"
    )
    frame_buffer: TotalSize = _setting(1 << 30, "Total bytes of frames kept for viewers")
    frame_buffer_per_user: TotalSize = _setting(
        256 << 20, "Bytes of frames kept for viewers of one user's streams"
    )
    lossless_buffer: Size = _setting(4 << 20, "Maximum bytes queued for a lossless viewer")
    renditions: Literal["auto", "off"] = _setting(
        "auto", "Smaller pictures for slow viewers; auto makes them if simplejpeg is installed"
    )
    rendition_cores: Cores = _setting(0.5, "Share of a processor core that renditions may use")
    layers_for_old_clients: Literal["on", "off"] = _setting(
        "on", "Whether viewers whose client knows no layers get smaller pictures on a slow link"
    )
    ping_interval: Seconds = _setting(25.0, "Time between pings to each client")
    idle_timeout: Seconds = _setting(120.0, "Close clients that have been silent for this long")
    stall_timeout: Seconds = _setting(
        10.0, "Close clients that read nothing for this long, before the upgrade or over HTTP"
    )
    offline_grace: Seconds = _setting(
        5.0, "Time a producer has to reconnect before its stream goes offline"
    )
    drain_timeout: Seconds = _setting(10.0, "Time clients have to disconnect when relay stops")
    trusted_proxies: Networks = _setting(
        (), "Proxies trusted to report the client's address", check=check_networks
    )
    proxy_protocol: Switch = _setting(
        default=False, about="Expect a PROXY protocol header (v1 or v2) from trusted proxies"
    )
    base_path: BasePath | None = _setting(
        None, "Path under which clients reach relay, such as /relay", check=check_base_path
    )
    allow_networks: Networks = _setting(
        (), "Accept clients from these networks only; if unset, from anywhere", check=check_networks
    )
    deny_networks: Networks = _setting(
        (), "Reject clients from these networks", check=check_networks
    )
    allow_origins: Origins = _setting(
        (), "Accept browsers from these web origins only; if unset, from any", check=check_origins
    )
    require_origin: Switch = _setting(
        default=False,
        about="With allow_origins, also reject clients that send no origin, such as apps",
    )
    frame_ancestors: Origins = _setting(
        (),
        "Web origins whose pages may show relay's page in a frame; if unset, none",
        check=check_frame_ancestors,
    )
    connection_rate: Rate = _setting("6000/minute", "New connections per address")
    failed_auth_rate: Rate = _setting(
        "100/minute", "Failed authentications per address before it is banned"
    )
    failed_token_rate: Rate = _setting(
        "5/minute", "Failed authentications per token before it is banned"
    )
    unknown_token_rate: Rate = _setting(
        "600/minute", "Unknown tokens per address to ask another server about"
    )
    ban_time: Seconds = _setting(60.0, "Duration of a ban")
    message_rate: Rate = _setting("1000/second", "Messages per connection, including frames")
    frame_rate: Rate = _setting("240/second", "Frames per connection")
    byte_rate: Rate = _setting("33554432/second", "Bytes of messages per connection")
    alert_rate: Rate = _setting("600/minute", "Alerts per user or service")
    register_rate: Rate = _setting("300/minute", "Stream registrations per user")
    stream_list_rate: Rate = _setting(
        "300/minute", "Requests for the list of streams per user or service"
    )
    renewal_rate: Rate = _setting("60/minute", "Session renewals per user or service")
    request_rate: Rate = _setting("1200/minute", "HTTP requests per user or service")
    max_connections: Limit = _setting(10_000, "Open connections in total")
    max_connections_per_address: Limit = _setting(2500, "Open connections per address")
    max_connections_per_user: Limit = _setting(100, "Open connections per user")
    crowded_user: Literal["newest-wins", "oldest-wins"] = _setting(
        "newest-wins", "Which connection to keep when a user has too many"
    )
    max_unauthenticated: Limit = _setting(3000, "Connections that have not authenticated yet")
    max_streams_per_user: Limit = _setting(50, "Online streams per user")
    max_subscriptions: Limit = _setting(1000, "Subscriptions per connection")
    max_subscriptions_per_user: Limit = _setting(
        10_000, "Subscriptions per user, on all connections"
    )
    reclaim_streams_after: Age | None = _setting(
        None, "Free streams this long after their owner was deleted; if unset, never"
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "Lowest level to log"
    )
    log_format: Literal["auto", "console", "json"] = _setting(
        "auto", "Format of log lines; auto is console on a terminal, otherwise json"
    )
    audit: Switch = _setting(default=True, about="Record who did what in the table relay.audit")
    audit_days: Days = _setting(90, "How long to keep audit events")
    alert_days: Days = _setting(365, "How long to keep alerts")
    alerts_per_stream: AlertLimit = _setting(100_000, "Number of alerts to keep per stream")
    alert_bytes: StoredBytes = _setting(16 << 30, "Bytes of alerts to keep in total")
    alert_bytes_per_user: StoredBytes = _setting(256 << 20, "Bytes of alerts to keep per user")
    alert_stills: KeepStills = _setting(
        "asked", "Which alerts keep the picture of their moment: those whose sender asks, or all"
    )
    clip_streams: StreamNames = _setting(
        (),
        "Streams whose alerts keep a clip; if unset, none, and no memory is used",
        check=check_streams,
    )
    clip_before: ClipSeconds = _setting(10.0, "Seconds of a clip before its alert")
    clip_after: ClipSeconds = _setting(10.0, "Seconds of a clip after its alert")
    clip_fps: ClipRate = _setting(10.0, "Pictures a second in a clip, at most")
    clip_standby: Switch = _setting(
        default=False,
        about="Want a picture a second of these streams while nobody watches, for before an alert",
    )
    clip_buffer: Size = _setting(
        16 << 20, "Bytes of pictures kept of one stream, before an alert and again after it"
    )
    picture_dir: Path | None = _setting(
        None, "Directory for stills and clips; if unset, pictures in data_dir"
    )
    picture_s3: WebUrl | None = _setting(
        None,
        "URL of an S3 bucket for stills and clips, in place of picture_dir",
        check=check_bucket_url,
    )
    picture_s3_region: Text = _setting("us-east-1", "Region of that bucket")
    picture_s3_credentials: Path | None = _setting(
        None,
        "File with the bucket's access key and secret; if unset, AWS_ACCESS_KEY_ID and"
        " AWS_SECRET_ACCESS_KEY",
    )
    picture_days: Days = _setting(30, "How long to keep stills and clips of alerts")
    picture_bytes: StoredBytes = _setting(
        16 << 30, "Bytes of stills and clips to keep in total; the oldest are removed"
    )
    picture_bytes_per_user: StoredBytes = _setting(
        1 << 30, "Bytes of stills and clips to keep of one user's streams"
    )
    webhook_networks: Networks = _setting(
        (),
        "Private networks that webhooks, ntfy and MQTT may call, even without TLS",
        check=check_networks,
    )
    mqtt_topic: Topic = _setting("relay", "MQTT topic that all topics of this relay are below")
    push_services: PushServices = _setting(
        DEFAULT_PUSH_SERVICES,
        "Push services of browsers that notifications are sent to; none turns Web Push off",
        check=check_push_services,
    )
    push_key: Secret | None = _setting(
        None,
        "Private key (VAPID) that push services know relay by; if unset, one is made and stored",
        check=check_push_key,
        secret=True,
    )
    push_contact: Contact | None = _setting(
        None,
        "Where push services reach the operator; if unset, public_url",
        check=check_contact,
    )
    profile: Literal["default", "load"] = _setting(
        "default", "load turns off rates and caps, for scripted load tests"
    )

    @property
    def addresses(self) -> tuple[BindAddress, ...]:
        return parse_bind(self.bind)

    @property
    def cluster_addresses(self) -> tuple[BindAddress, ...]:
        """Those of `cluster_bind`; none if it is not set."""
        return parse_bind(self.cluster_bind, "cluster_bind") if self.cluster_bind else ()

    @property
    def picture_folder(self) -> Path:
        """Where stills and clips are kept."""
        return self.picture_dir or self.data_folder / "pictures"

    @property
    def data_folder(self) -> Path:
        """`data_dir`, or the default data folder of the user that runs relay."""
        return self.data_dir or default_data_dir()


def default_data_dir() -> Path:
    """The folder for data if `data_dir` is not set."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/relay")
    try:
        Path.home()
    except RuntimeError:
        raise ConfigError("this user has no home directory: set data_dir") from None
    import platformdirs  # noqa: PLC0415, rarely needed, and `relay --help` should be quick

    return platformdirs.user_data_path("relay", appauthor=False)


SETTINGS: Mapping[str, attrs.Attribute[Any]] = attrs.fields_dict(Settings)
SETTING_TYPES = get_type_hints(Settings, include_extras=True)


def flag(name: str) -> str:
    """The command-line option of a setting."""
    return f"--{name.replace('_', '-')}"


def placeholder(name: str) -> str:
    """The word for the value of a setting in help, such as SECONDS."""
    wanted = SETTING_TYPES[name]
    if wanted == Path | None:
        return "DIR" if name.endswith(("_dir", "_bin")) else "FILE"
    meta = _meta(wanted)
    return str(meta.title) if meta else "|".join(get_args(wanted))


def expected(wanted: Any) -> str:
    """The description of a type in an error, after "expected"."""
    if wanted == Path | None:
        return "a path"
    if meta := _meta(wanted):
        return str(meta.description)
    *others, last = map(repr, get_args(wanted))
    return f"{', '.join(others)} or {last}"


def _meta(wanted: Any) -> Meta | None:
    for part in (wanted, *get_args(wanted)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, Meta):
                return meta
    return None
