"""Airflow plugin: the pages, Data Docs and runbooks in the UI's own server, for whoever is logged in.

A page of a plugin is open to everybody unless it asks (measured on 3.3.2), so the application asks for every route.
Every task start loads the plugins; what the pages need is imported at the first request only, in a thread, so that the
UI goes on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.configuration import conf
from airflow.plugins_manager import AirflowPlugin

from audiorec.oncall.pages import PREFIX

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Pages:
    """An ASGI application that is built when it is first asked for something."""

    def __init__(self) -> None:
        self._building: asyncio.Task[Any] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._building is None or (self._building.done() and self._building.exception() is not None):
            # Once for all who come meanwhile, and again where it failed (settings that were mended since).
            self._building = asyncio.create_task(asyncio.to_thread(build))
        app = await asyncio.shield(self._building)
        await app(scope, receive, send)


def build() -> Any:
    from serving.pages.behind_airflow import create

    return create()


def ui() -> str:
    """The UI's address, without a slash at its end."""
    return str(conf.get("api", "base_url", fallback="")).rstrip("/")


class RecommenderPages(AirflowPlugin):
    """Registers the pages under /recommender, and a link to them in the UI."""

    name = "audiobook_recommender_pages"
    fastapi_apps = [{"app": Pages(), "url_prefix": PREFIX, "name": "Audiobook recommender pages"}]  # noqa: RUF012
    # In the menu Browse, because at the top level 3.3.2 makes of a link a button that does nothing (measured).
    external_views = [  # noqa: RUF012
        {"name": "Recommender", "href": f"{ui()}{PREFIX}/runs", "destination": "nav", "category": "browse"}
    ]
