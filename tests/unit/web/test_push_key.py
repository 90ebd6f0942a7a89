"""What the page hears when there is no key that push services could know relay by."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from relay.alerts.targets.setup import PushParts
from relay.alerts.targets.web_push.keys import PushKeys
from relay.errors import StoreUnavailable
from relay.model.access.identity import User
from relay.model.targets.push_service import push_services_of
from relay.web.api import ApiError
from relay.web.push import PushApi
from tests.unit.alerts.push_store import PushStore


async def refusal(store: PushStore) -> ApiError:
    async def authenticate(_request: object, **_: object) -> User:
        return User("ann", "s", datetime.now(UTC))

    api: Any = SimpleNamespace(authenticate=authenticate)
    request: Any = SimpleNamespace(query_params={})
    services = push_services_of(["fcm.googleapis.com"])
    parts = PushParts(services, PushKeys(store), store, None)
    with pytest.raises(ApiError) as raised:
        await PushApi(api, api, parts).listed(request)
    return raised.value


async def test_one_that_somebody_has_broken_is_told_and_not_shown() -> None:
    told = await refusal(PushStore(private_key="broken-5ecret"))
    assert told.status_code == 503
    assert "its operator can make a new one" in told.detail
    assert "5ecret" not in told.detail


async def test_while_the_database_is_away_it_is_asked_again_later() -> None:
    store = PushStore()

    def fail() -> None:
        raise StoreUnavailable

    store.before_query = fail
    told = await refusal(store)
    assert told.status_code == 503
    assert told.headers is not None
    assert told.headers["Retry-After"]
