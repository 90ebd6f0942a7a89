"""Puts together what answers with pictures."""

from __future__ import annotations

from typing import Protocol, Self

from attrs import frozen

from relay.auth.login import Login
from relay.connection.context import SessionContext
from relay.web.api import Api
from relay.web.pictures.access import Access, LinkPlaces
from relay.web.pictures.alert_pictures import AlertPictures, KeptWithAlerts
from relay.web.pictures.links import LinkApi, LinksOfUsers
from relay.web.pictures.live import Live
from relay.web.pictures.source import PictureSource
from relay.web.pictures.stills import Stills


class LinkStore(LinksOfUsers, LinkPlaces, Protocol):
    """The links, and who reads with them."""


@frozen
class Pictures:
    """Answers requests for pictures, and for links to them."""

    stills: Stills
    live: Live
    links: LinkApi
    of_alerts: AlertPictures | None = None

    @classmethod
    def build(
        cls,
        api: Api,
        context: SessionContext,
        idle_timeout: float,
        links: LinkStore,
        link_login: Login,
        *,
        kept: KeptWithAlerts | None = None,
    ) -> Self:
        """`idle_timeout`: seconds without a picture after which MJPEG ends. `kept`: what is kept
        with alerts, and where."""
        source, access = PictureSource(api, context), Access(api, context.watch, link_login, links)
        return cls(
            *(Stills(source, access), Live(source, access, idle_timeout), LinkApi(source, links)),
            of_alerts=None if kept is None else AlertPictures(source, kept),
        )
