"""The table of what operators ask of all relays: to end connections.

A request is a row, of which relays are notified. Each relay looks at it once, and adds the number
of connections that it has ended, for the operator who waits.
"""

from __future__ import annotations

from datetime import timedelta

import trio
from attrs import define

from relay.model.access.operator import EndAnswer, EndRequest, Operator
from relay.postgres.database import Connection, Database
from relay.postgres.tables.audit import record_change

OPERATOR_ANSWER_TIMEOUT = 3.0
"""Seconds in which a relay has to look."""
ANSWER_INTERVAL = 0.1
OTHERS_TIMEOUT = 0.5
"""Seconds after the first relay's look in which others may look."""
RECORD_TIMEOUT = 5.0
"""Seconds to record a request."""
VALID_FOR = timedelta(minutes=1)
"""A relay that hears of a request later than this leaves it."""


@define(eq=False, repr=False)
class OperatorRequests:
    """The rows of `relay.operator_requests`."""

    _database: Database

    # -- for operators

    async def end(
        self,
        *,
        user_id: str | None = None,
        connection_number: int | None = None,
        node: str | None = None,
        by: Operator | None = None,
    ) -> EndAnswer:
        """Ask all relays, or one node, to end connections, and wait for what they did."""

        def insert(connection: Connection) -> int:
            connection.execute(
                "delete from relay.operator_requests where made_at < now() - interval '1 day'"
            )
            rows = connection.execute(
                "insert into relay.operator_requests (user_id, connection, node)"
                " values (%s, %s, %s) returning request_id",
                [user_id, connection_number, node],
            ).fetchall()
            return int(rows[0][0])

        def record(connection: Connection) -> None:
            outcome, why = _outcome(answer, one=connection_number is not None)
            what = "connections of a user" if connection_number is None else "one connection"
            record_change(
                connection,
                "end",
                outcome=outcome,
                reason=f"{what}{why}",
                user_id=user_id,
                connection_number=connection_number,
                node=node,
                by=by,
            )

        request_id = await self._database.transact(insert)
        answer = EndAnswer(0, 0)
        try:
            answer = await self._wait_for_answer(request_id)
        finally:
            # Whoever does not wait for the answer has asked all the same.
            with trio.move_on_after(RECORD_TIMEOUT, shield=True):
                await self._database.transact(record)
        return answer

    async def _wait_for_answer(self, request_id: int) -> EndAnswer:
        answer = EndAnswer(0, 0)
        with trio.move_on_after(OPERATOR_ANSWER_TIMEOUT) as waiting:
            while True:
                await trio.sleep(ANSWER_INTERVAL)
                before, answer = answer, await self._answer(request_id)
                if answer.relays and not before.relays:
                    waiting.deadline = trio.current_time() + OTHERS_TIMEOUT
        return answer

    async def _answer(self, request_id: int) -> EndAnswer:
        def select(connection: Connection) -> EndAnswer:
            rows = connection.execute(
                "select relays, ended from relay.operator_requests where request_id = %s",
                [request_id],
            ).fetchall()
            return EndAnswer(*rows[0]) if rows else EndAnswer(0, 0)

        return await self._database.transact(select)

    # -- for relays

    async def latest_id(self) -> int:
        """The greatest id so far; 0 when there is none."""

        def select(connection: Connection) -> int:
            rows = connection.execute(
                "select coalesce(max(request_id), 0) from relay.operator_requests"
            )
            return int(rows.fetchall()[0][0])

        return await self._database.transact(select)

    async def after(self, request_id: int) -> list[EndRequest]:
        """The requests with a greater id that were made a moment ago, in order."""

        def select(connection: Connection) -> list[EndRequest]:
            rows = connection.execute(
                "select request_id, user_id, connection, node from relay.operator_requests"
                " where request_id > %s and made_at > now() - %s order by request_id",
                [request_id, VALID_FOR],
            )
            return [EndRequest(*row) for row in rows]

        return await self._database.transact(select)

    async def done(self, request: EndRequest, ended: int) -> None:
        """Note that a relay has looked, and how many connections it has ended."""
        await self._database.transact(
            lambda connection: connection.execute(
                "update relay.operator_requests set relays = relays + 1, ended = ended + %s"
                " where request_id = %s",
                [ended, request.request_id],
            )
        )


def _outcome(answer: EndAnswer, *, one: bool) -> tuple[str, str]:
    """What became of a request, and what its reason ends with."""
    if not answer.relays:
        return "unavailable", ": no relay has answered"
    if one and not answer.ended:
        return "refused", ": there is none"
    return "succeeded", ""
