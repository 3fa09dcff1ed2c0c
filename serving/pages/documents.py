"""Data Docs and runbooks, as files made elsewhere: served as they are, under a policy of their own."""

from __future__ import annotations

import mimetypes

import fsspec
from fastapi import APIRouter, HTTPException, Request, Response

from audiorec.oncall.pages import DATA_DOCS, absolute, inside, runbook_page
from serving.pages.base import pages_of

router = APIRouter()

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


@router.get("/data-docs/{path:path}")
def data_docs(request: Request, path: str) -> Response:
    """A file of the Data Docs that `validate` left."""
    try:
        relative = inside(path)
    except ValueError as error:
        raise HTTPException(404, str(error)) from None
    address = f"{absolute(pages_of(request).settings.store.uri)}/{DATA_DOCS}/{relative}"
    filesystem, location = fsspec.core.url_to_fs(address)
    try:
        content = filesystem.cat_file(location)
    except (FileNotFoundError, IsADirectoryError, PermissionError):
        raise HTTPException(404, f"there is no {relative} among the Data Docs") from None
    kind = mimetypes.guess_type(relative)[0] or "application/octet-stream"
    return Response(content, media_type=kind, headers=HEADERS)


@router.get("/runbooks/{code}")
def runbooks(code: str) -> Response:
    """A runbook as a page."""
    page = runbook_page(code)
    if page is None:
        raise HTTPException(404, f"there is no runbook {code}")
    return Response(page, media_type="text/html", headers=HEADERS)
