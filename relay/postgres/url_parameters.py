"""Parameters of database URLs that other drivers know and libpq does not.

People give relay the URL that their application uses. What concerns only another driver is passed
over, TLS is translated, and what nobody knows is named.
"""

from __future__ import annotations

import re
from functools import cache

from psycopg import pq

from relay.errors import ConfigError

UNKNOWN_PARAMETER = (
    "the database URL cannot be read: PostgreSQL knows no parameter {}; correct it or leave it out"
)

_NAMES = """
    schema pgbouncer connection_limit pool_timeout socket_timeout statement_cache_size sslaccept
    sslidentity single_use_connections max_connection_lifetime max_idle_connection_lifetime
    statement_timeout query_timeout lock_timeout idle_in_transaction_session_timeout keepalive
    keepalives_initial_delay uselibpqcompat max min idletimeoutmillis connectiontimeoutmillis
    idle_timeout max_lifetime prepare fetch_types search_path timezone
    pool_max_conns pool_min_conns pool_max_conn_lifetime pool_max_conn_idle_time
    pool_max_conn_lifetime_jitter pool_health_check_period default_query_exec_mode
    statement_cache_capacity description_cache_capacity statement_cache_mode binary_parameters
    pool pool_size pool_mode max_overflow pool_recycle pool_pre_ping prepared_statements
    reaping_frequency checkout_timeout advisory_locks encoding charset serverversion
    currentschema preparethreshold preferquerymode applicationname logintimeout connecttimeout
    sockettimeout tcpkeepalive rewritebatchedinserts stringtype sslfactory targetservertype
    prepared_statement_cache_size prepared_statement_name_func command_timeout server_settings
    async_fallback supa workaround
"""
OTHER_DRIVERS_PARAMETERS = frozenset(_NAMES.split())
"""Those of Prisma, node-postgres, postgres.js, pgx, lib/pq, ActiveRecord, JDBC, SQLAlchemy, asyncpg
and others, in lower case."""

_SSL = {
    "true": "require",
    "1": "require",
    "no-verify": "require",
    "false": "disable",
    "0": "disable",
}

_SERVER = r"(?:[\w.%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?"
# Only a URL whose parts are beyond doubt: what looks like a parameter may be a part of a password.
_URL = re.compile(
    rf"(?P<base>postgres(?:ql)?://(?:[^@/]*@)?{_SERVER}(?:,{_SERVER})*(?:/[^?@/]*)?)\?(?P<query>[^@?]*)"
)


def translate(url: str) -> str:
    """The URL as libpq understands it; `ConfigError` names a parameter that nobody knows. Anything
    that is not clearly a URL stays as it is."""
    match = _URL.fullmatch(url)
    if match is None:
        return url
    kept = [pair for part in match["query"].split("&") if (pair := _translate_pair(part))]
    return f"{match['base']}?{'&'.join(kept)}" if kept else match["base"]


def _translate_pair(pair: str) -> str | None:
    name, equals, value = pair.partition("=")
    if name in {"ssl", "sslmode"}:
        return f"sslmode={_SSL.get(value.lower(), value)}"
    if not pair or name.lower() in OTHER_DRIVERS_PARAMETERS:
        return None
    if (not equals or name not in _libpq_parameters()) and re.fullmatch(r"[A-Za-z_][\w.-]*", name):
        raise ConfigError(UNKNOWN_PARAMETER.format(name))
    return pair


@cache
def _libpq_parameters() -> frozenset[str]:
    return frozenset(each.keyword.decode() for each in pq.Conninfo.get_defaults())
