"""Notifications in browsers over HTTP: `GET /push` gives the key to subscribe for and lists one's
browsers, `POST /push` adds one or changes its rules, and `DELETE /push/ID` removes it.

Only users have them; what a browser is told is what its user may see at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import msgspec
from attrs import field, frozen
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from relay.alerts.targets.setup import PushParts
from relay.connection.session.refusals import STORE_REJECTS
from relay.errors import ConfigError, StoreRejects, StoreUnavailable
from relay.logs.throttle import ThrottledWarning
from relay.model.access.identity import ANY_STREAM, User
from relay.model.targets.alert_target import MAX_COOLDOWN, AlertTarget, TargetRules, TargetViewer
from relay.model.targets.push_subscription import (
    MAX_STREAMS_OF_SUBSCRIPTION,
    MAX_SUBSCRIPTIONS_OF_USER,
    NewSubscription,
    service_of,
)
from relay.model.targets.stream_event import StreamEventKind
from relay.outgoing.webhook_client import MAX_URL_LENGTH, check_webhook_url
from relay.protocol.codec import DECODE_ERRORS
from relay.protocol.invalid_message import in_words
from relay.protocol.messages import ErrorCode, Severity, milliseconds
from relay.web.api import (
    Api,
    ApiError,
    NoQuery,
    json_response,
    query_of,
    read_body,
    store_unavailable,
)

ONLY_USERS_HAVE_BROWSERS = "Only users get notifications; give services a webhook"
PUSH_IS_OFF = "This relay sends no notifications (push_services)"
NOT_A_SERVICE = (
    "This relay does not send to the push service of this browser; its operator can allow it"
    " (push_services)"
)
BROKEN_KEY = "The key of this relay for notifications is broken; its operator can make a new one"
MAX_PUSH_KEY_LENGTH = 100
STREAMS_RULE = "ids of streams, prefixes that end in '*', or '*' for all"

StreamName = Annotated[
    str, Meta(pattern=r"^([A-Za-z0-9._:-]{1,128}\*?|\*)(?!\n)$", description=STREAMS_RULE)
]
EventName = Literal["alert"] | StreamEventKind
PushKeyText = Annotated[str, Meta(max_length=MAX_PUSH_KEY_LENGTH)]


class PushKeyPair(msgspec.Struct):
    """The keys that a browser has made for its messages, as base64url."""

    p256dh: PushKeyText
    auth: PushKeyText


class BrowserSubscription(msgspec.Struct, rename="camel"):
    """What `PushSubscription.toJSON()` gives in a browser."""

    endpoint: Annotated[str, Meta(max_length=MAX_URL_LENGTH)]
    keys: PushKeyPair


class SubscribeRequest(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """The body of `POST /push`."""

    subscription: BrowserSubscription
    streams: Annotated[
        list[StreamName], Meta(min_length=1, max_length=MAX_STREAMS_OF_SUBSCRIPTION)
    ] = msgspec.field(default_factory=lambda: [ANY_STREAM])
    min_severity: Severity = "low"
    cooldown: Annotated[int, Meta(ge=0, le=MAX_COOLDOWN)] = 0
    events: Annotated[list[EventName], Meta(min_length=1, max_length=5)] = msgspec.field(
        default_factory=lambda: ["alert"]
    )
    picture: bool = True


class SubscriptionsOfUsers(Protocol):
    """The browsers of users; `StoreUnavailable`."""

    async def subscribe(self, new: NewSubscription) -> AlertTarget:
        """Add a browser, or change its rules; `ConfigError` if the user has too many."""

    async def of_user(self, user_id: str) -> Sequence[AlertTarget]:
        """The browsers of a user."""

    async def unsubscribe(self, target_id: str, user_id: str) -> bool:
        """Remove a browser of a user; False if there is none of this id."""


@frozen
class PushApi:
    """Answers requests about notifications."""

    _api: Api
    _store: SubscriptionsOfUsers
    _push: PushParts
    _warning: ThrottledWarning = field(
        factory=lambda: ThrottledWarning("browsers cannot subscribe to notifications")
    )

    async def listed(self, request: Request) -> Response:
        """`GET /push`: the key, and the sender's browsers."""
        query_of(request, NoQuery)
        user = await self._user(request)
        key = await self._public_key()
        try:
            targets = await self._store.of_user(user.user_id)
        except StoreUnavailable:
            raise store_unavailable() from None
        return json_response(
            {
                "key": key,
                "subscriptions": [browser_as_json(each) for each in targets],
                "most": MAX_SUBSCRIPTIONS_OF_USER,
            }
        )

    async def subscribe(self, request: Request) -> Response:
        """`POST /push`: notifications for the browser that the body names."""
        query_of(request, NoQuery)
        await self._user(request)  # before the body is read
        asked = _request_in(await read_body(request))
        user = await self._user(request, again=True)
        key = await self._public_key()
        self._check(asked.subscription)
        keys = asked.subscription.keys
        new = NewSubscription(
            asked.subscription.endpoint,
            keys.p256dh,
            keys.auth,
            key,
            TargetViewer(
                user.user_id, user.source == "session", tuple(dict.fromkeys(asked.streams))
            ),
            TargetRules(
                tuple(dict.fromkeys(asked.events)), asked.min_severity, asked.cooldown, None
            ),
            asked.picture,
        )
        try:
            target = await self._store.subscribe(new)
        except StoreUnavailable:
            raise store_unavailable() from None
        except StoreRejects:
            raise ApiError(400, ErrorCode.INVALID_MESSAGE, STORE_REJECTS) from None
        except ConfigError as problem:
            raise ApiError(409, ErrorCode.INVALID_MESSAGE, str(problem)) from None
        self._api.record(request, "push", "succeeded", user, f"subscribed {target.target_id}")
        return json_response({"subscription": browser_as_json(target)}, 201)

    async def unsubscribe(self, request: Request) -> Response:
        """`DELETE /push/ID`: that browser gets no notifications any more."""
        query_of(request, NoQuery)
        user = await self._user(request)
        target_id = request.path_params["target_id"]
        try:
            found = await self._store.unsubscribe(target_id, user.user_id)
        except StoreUnavailable:
            raise store_unavailable() from None
        except (StoreRejects, ConfigError):
            found = False
        if not found:
            raise ApiError(404, ErrorCode.INVALID_MESSAGE, "You have no browser of this id")
        self._api.record(request, "push", "succeeded", user, f"removed {target_id}")
        return json_response({"removed": target_id})

    def _check(self, asked: BrowserSubscription) -> None:
        """`ApiError` unless messages can be sent to a browser."""
        # The key of VAPID has loaded what this needs.
        from relay.alerts.targets.web_push.encryption import (  # noqa: PLC0415
            BadSubscriptionKeys,
            SubscriptionKeys,
        )

        try:
            check_webhook_url(asked.endpoint, plain=True)  # http:// only if the settings say so
            SubscriptionKeys.parse(asked.keys.p256dh, asked.keys.auth)
        except (ConfigError, BadSubscriptionKeys) as problem:
            text = f"Invalid subscription: {problem}"
            raise ApiError(400, ErrorCode.INVALID_MESSAGE, text) from None
        if not any(service.covers(asked.endpoint) for service in self._push.services):
            raise ApiError(400, ErrorCode.INVALID_MESSAGE, NOT_A_SERVICE)

    async def _public_key(self) -> str:
        if not self._push.services:
            raise ApiError(404, ErrorCode.INVALID_MESSAGE, PUSH_IS_OFF)
        try:
            return (await self._push.keys.key()).public
        except StoreUnavailable:
            raise store_unavailable() from None
        except ConfigError as problem:  # somebody has changed the one that is stored
            self._warning.warn(str(problem))
            raise ApiError(503, ErrorCode.STORE_UNAVAILABLE, BROKEN_KEY) from None

    async def _user(self, request: Request, *, again: bool = False) -> User:
        identity = await self._api.authenticate(request, again=again)
        if not isinstance(identity, User):
            raise ApiError(403, ErrorCode.UNAUTHORIZED, ONLY_USERS_HAVE_BROWSERS)
        return identity


def browser_as_json(target: AlertTarget) -> dict[str, object]:
    """What may be told of a browser to its user. Not its endpoint, which lets others send to it."""
    assert target.viewer is not None
    rules = target.rules
    return {
        "id": target.target_id,
        "service": service_of(target),
        "streams": target.viewer.streams,
        "minSeverity": rules.min_severity,
        "cooldown": rules.cooldown,
        "events": rules.events,
        "picture": bool(target.options.get("picture")),
        "createdAt": milliseconds(target.created_at),
        "delivered": target.delivered,
        "failures": target.failures,
        "lastError": target.last_error,
        "givenUp": target.given_up_at is not None,
    }


def _request_in(body: bytes) -> SubscribeRequest:
    try:
        return msgspec.json.decode(body, type=SubscribeRequest)
    except msgspec.ValidationError as problem:
        text = f"Invalid request: {in_words(problem, SubscribeRequest)}"
    except DECODE_ERRORS:
        text = "Invalid request: not a JSON object"
    raise ApiError(400, ErrorCode.INVALID_MESSAGE, text)
