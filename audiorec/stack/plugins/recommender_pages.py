"""Airflow plugin: Data Docs and runbooks in the UI's own server, for whoever is logged in.

A page of a plugin is open to everybody unless it asks (measured on 3.3.2), so both routes ask for the user.
Every task start loads the plugins; what the pages need is imported at the first request only.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from audiorec.oncall.pages import PREFIX

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CONTENT_POLICY = (
    # Great Expectations' pages carry scripts of their own. They may run, but talk to nobody: not to Airflow's
    # API either, which would take them for the person who is logged in.
    "default-src 'self' https: data: 'unsafe-inline' 'unsafe-eval'; "
    "connect-src 'none'; form-action 'none'; frame-ancestors 'self'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, max-age=60",
    "Referrer-Policy": "no-referrer",
}


class Pages:
    """An ASGI application that is built when it is first asked for something."""

    def __init__(self) -> None:
        self._app: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            self._app = build()
        await self._app(scope, receive, send)


def build() -> Any:
    """The application with its two routes."""
    import fsspec
    from airflow.api_fastapi.core_api.security import get_user
    from airflow.configuration import conf
    from fastapi import Depends, FastAPI, HTTPException, Request
    from fastapi.responses import JSONResponse, RedirectResponse, Response

    from audiorec.oncall.pages import DATA_DOCS, absolute, inside, runbook_page
    from audiorec.settings import load_settings

    app = FastAPI(
        title="Audiobook recommender",
        dependencies=[Depends(get_user)],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )

    @app.exception_handler(401)
    async def to_login(request: Request, error: HTTPException) -> Response:
        """A person with a browser is sent to the login and comes back; a program gets its 401."""
        if "text/html" in request.headers.get("accept", ""):
            ui = conf.get("api", "base_url", fallback="").rstrip("/")
            return RedirectResponse(f"{ui}/auth/login/?next={ui}{request.url.path}", status_code=302)
        return JSONResponse({"detail": "not logged in"}, status_code=401)

    @app.get("/data-docs/{path:path}")
    def data_docs(path: str) -> Response:
        try:
            relative = inside(path)
        except ValueError as error:
            raise HTTPException(404, str(error)) from None
        address = f"{absolute(load_settings().store.uri)}/{DATA_DOCS}/{relative}"
        filesystem, location = fsspec.core.url_to_fs(address)
        try:
            content = filesystem.cat_file(location)
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            raise HTTPException(404, f"there is no {relative} among the Data Docs") from None
        kind = mimetypes.guess_type(relative)[0] or "application/octet-stream"
        return Response(content, media_type=kind, headers=HEADERS)

    @app.get("/runbooks/{code}")
    def runbooks(code: str) -> Response:
        page = runbook_page(code)
        if page is None:
            raise HTTPException(404, f"there is no runbook {code}")
        return Response(page, media_type="text/html", headers=HEADERS)

    return app


class RecommenderPages(AirflowPlugin):
    """Registers the pages under /recommender."""

    name = "audiobook_recommender_pages"
    fastapi_apps = [{"app": Pages(), "url_prefix": PREFIX, "name": "Audiobook recommender pages"}]  # noqa: RUF012
