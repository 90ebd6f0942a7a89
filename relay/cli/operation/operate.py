"""`relay stream`, `relay user` and `relay connection`: what operators do."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click
from attrs import frozen

from relay.cli.grouped_help import GroupedGroup
from relay.cli.options import STORE_SETTINGS, settings_options
from relay.cli.running import with_store
from relay.errors import ConfigError
from relay.protocol.messages import STREAM_ID_PATTERN, STREAM_ID_RULE

if TYPE_CHECKING:
    from relay.model.access.operator import EndAnswer, OwnedStream
    from relay.postgres.store import Store

NO_RELAY = "no relay that uses this database looked at the request within 3 s; is one running?"


@frozen
class ConnectionName:
    """A connection by its number, and the node that numbered it, if that is named."""

    number: int
    node: str | None = None


def _connection_name(
    context: click.Context, parameter: click.Parameter, text: str
) -> ConnectionName:
    """Parse `N` or `NODE/N`."""
    node, slash, number = text.rpartition("/")
    if slash and not node:
        raise click.BadParameter(f"expected N or NODE/N, not {text!r}")
    return ConnectionName(click.IntRange(1, 2**53)(number, parameter, context), node or None)


def _stream_id(_context: click.Context, _parameter: click.Parameter, text: str) -> str:
    if not re.match(STREAM_ID_PATTERN, text):
        raise click.BadParameter(f"expected {STREAM_ID_RULE}, not {text!r}")
    return text


@click.group(cls=GroupedGroup)
def stream() -> None:
    """List streams with their owners, and change their owners.

    \b
    List the owners:       relay stream list
    Give one to a user:    relay stream transfer front-door bob@example.org
    Let anybody claim it:  relay stream free front-door
    """


@stream.command(name="list")
@click.option("--owner", metavar="USER", help="Only streams of this user (id or e-mail address).")
@click.option("--gone", is_flag=True, help="Only streams whose owner was deleted.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, metavar="N",
    help="At most this many.",
)  # fmt: skip
@click.option("--after", default="", metavar="STREAM", help="Start after this stream id.")
@settings_options(*STORE_SETTINGS)
def stream_list(owner: str | None, gone: bool, limit: int, after: str) -> None:
    """List all registered streams with their owners.

    `gone` says when the owner was deleted, as far as the triggers of `relay db migrate
    --watch-sessions` have seen it.

    \b
    Example:
      relay stream list --gone
    """

    async def show(store: Store) -> str:
        owner_id = None if owner is None else await _user_id(store, owner)
        found = await store.stream_ownership.all(
            owner_id=owner_id, gone=gone, after=after, most=limit + 1
        )
        lines = [_line(each) for each in found[:limit]]
        if len(found) > limit:
            lines.append(f"there are more: --after {found[limit - 1].stream_id}")
        return "\n".join(lines)

    click.echo(with_store(show) or "there are no such streams")


@stream.command(name="transfer")
@click.argument("stream_id", metavar="STREAM", callback=_stream_id)
@click.argument("user")
@click.option(
    "--with-history", is_flag=True,
    help="Give the new owner the stored alerts, and keep grants and webhooks.",
)  # fmt: skip
@click.option(
    "--any-user", is_flag=True, help="Accept any user id, even one that is not in the user table."
)
@settings_options(*STORE_SETTINGS)
def stream_transfer(stream_id: str, user: str, with_history: bool, any_user: bool) -> None:
    """Give a stream to another user.

    USER is an id or an e-mail address. The connection that produces the stream is closed within a
    second. Without --with-history, nobody can read the stored alerts any more, and the grants for
    the stream end.

    \b
    Example:
      relay stream transfer front-door ana@example.org
    """

    async def transfer(store: Store) -> str:
        user_id = user if any_user else await store.sessions.find_user(user)
        before = await store.stream_ownership.transfer(
            stream_id, user_id, with_history=with_history
        )
        if before == user_id:
            return f"{stream_id} already belongs to {user_id}"
        return f"{stream_id} now belongs to {user_id} (before: {before or 'nobody'})"

    click.echo(with_store(transfer))


@stream.command(name="free")
@click.argument("stream_id", metavar="STREAM", callback=_stream_id)
@settings_options(*STORE_SETTINGS)
def stream_free(stream_id: str) -> None:
    """Take a stream from its owner.

    The next user who registers it becomes its owner. Use this for streams whose owner is gone: an
    owner who still exists can simply register the stream again. Nobody can read the stored alerts
    any more, and the grants for the stream end.

    \b
    Example:
      relay stream free front-door
    """

    async def free(store: Store) -> str:
        before = await store.stream_ownership.free(stream_id)
        if before is None:
            return f"{stream_id} already belongs to nobody"
        return f"{stream_id} now belongs to nobody (before: {before})"

    click.echo(with_store(free))


@click.group(cls=GroupedGroup)
def user() -> None:
    """End the connections of users.

    \b
    End all of a user's connections:  relay user end ana@example.org
    """


@user.command(name="end")
@click.argument("user_name", metavar="USER")
@settings_options(*STORE_SETTINGS)
def user_end(user_name: str) -> None:
    """End all connections of a user.

    They end on every relay that uses this database. USER is an id or an e-mail address. Clients are
    told SESSION_REVOKED and do not come back by themselves. The session stays valid: to keep a user
    out, ban the user or delete the session.

    \b
    Example:
      relay user end ana@example.org
    """

    async def end(store: Store) -> str:
        user_id = await _user_id(store, user_name)
        answer = await store.operator_requests.end(user_id=user_id)
        return _ended(answer, f"of {user_id}")

    click.echo(with_store(end))


@click.group(cls=GroupedGroup)
def connection() -> None:
    """End single connections.

    \b
    Find its number:  relay audit --user 7Kq2VxT1
    End it:           relay connection end 17
    """


@connection.command(name="end")
@click.argument("name", metavar="[NODE/]N", callback=_connection_name)
@click.option(
    "--user", "user_name", metavar="USER", help="Only if it is a connection of this user."
)
@settings_options(*STORE_SETTINGS)
def connection_end(name: ConnectionName, user_name: str | None) -> None:
    """End the connection with this number.

    The log, `relay audit` and the statistics show the numbers. The client is told ENDED_BY_OPERATOR
    and may come back.

    Each machine counts its own connections. Where several relays serve together, the log and `relay
    audit` name the node, too: say NODE/N; the first characters of NODE are enough. Without a node,
    N is refused there unless --user says whose connection it is. Other relays of this database all
    look at N.

    \b
    Example:
      relay connection end 4711
      relay connection end 5f2c9d0e8a7b1634/4711
    """

    async def end(store: Store) -> str:
        user_id = None if user_name is None else await _user_id(store, user_name)
        node = await _find_node(store, name, is_named=user_id is not None)
        answer = await store.operator_requests.end(
            user_id=user_id, connection_number=name.number, node=node
        )
        if answer.relays and not answer.ended:
            whose = "" if user_id is None else f" of {user_id}"
            where = "" if node is None else f" at the node {node}"
            raise ConfigError(f"there is no connection {name.number}{whose}{where}")
        return _ended(answer, f"with the number {name.number}")

    click.echo(with_store(end))


async def _find_node(store: Store, name: ConnectionName, *, is_named: bool) -> str | None:
    """The id of the node that is meant; `ConfigError` for one that there is not, and for a number
    that may mean several connections."""
    nodes = [each.node for each in await store.nodes.seen() if each.state != "silent"]
    if name.node is not None:
        meant = [each.node_id for each in nodes if each.node_id.startswith(name.node)]
        if len(meant) != 1:
            problem = "several nodes begin with" if meant else "there is no node"
            raise ConfigError(f"{problem} {name.node}; `relay nodes` lists them")
        return meant[0]
    if not is_named and len({each.machine for each in nodes}) > 1:
        choices = ", ".join(f"{each.node_id}/{name.number}" for each in nodes)
        raise ConfigError(
            f"each machine has its own connection {name.number}: name the node, which the log and"
            f" `relay audit` show, or the user with --user; the nodes are {choices}"
        )
    return None


async def _user_id(store: Store, name: str) -> str:
    """The id of a user, who may not be in the user table: deleted, or of another issuer."""
    try:
        return await store.sessions.find_user(name)
    except ConfigError:
        if not name or "@" in name:
            raise
        return name


def _ended(answer: EndAnswer, which: str) -> str:
    if not answer.relays:
        raise ConfigError(NO_RELAY)
    plural = "" if answer.ended == 1 else "s"
    return f"ended {answer.ended} connection{plural} {which}"


def _line(stream: OwnedStream) -> str:
    parts = [
        stream.stream_id,
        f"owner={stream.owner_id or '-'}",
        f"since={stream.since:%Y-%m-%d}",
    ]
    if stream.gone_since is not None:
        parts.append(f"gone={stream.gone_since:%Y-%m-%d}")
    return "\t".join(parts)
