"""The pages as one application. Who is signed in is for its host to say; every route asks."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException

from audiorec.errors import AudiorecError
from audiorec.recommend import UnknownTitle
from audiorec.settings import Settings
from serving.pages import comparing, control, documents, people, runs, titles
from serving.pages.access import Person
from serving.pages.base import HERE, Pages, see

_HEADINGS = {
    403: "This is not for you",
    404: "There is no such page",
    405: "This cannot be done here",
    409: "This cannot be done now",
    422: "Something in the request is not as it should be",
    503: "Something that is needed does not answer",
}


def create_pages(
    settings: Settings,
    who: Callable[..., Person],
    secret: str,
    login: Callable[[Request], str] | None = None,
) -> FastAPI:
    """The application.

    Args:
        who: a FastAPI dependency: the person behind a request. Raises HTTPException 401 for nobody, 403 for somebody
            who may not look.
        secret: of the server (see `access.Seal`).
        login: the address of the login for a person who came with a request; without it nobody is sent on.
    """

    def enter(request: Request, person: Person = Depends(who)) -> None:
        request.state.person = person

    app = FastAPI(
        title="Audiobook recommender",
        dependencies=[Depends(enter)],
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    pages = app.state.pages = Pages(settings, secret)
    for module in (runs, comparing, people, titles, control, documents):
        app.include_router(module.router)

    @app.get("/")
    def start(request: Request) -> Response:
        return see(request, "/runs")

    @app.get("/pages.css")
    def style() -> Response:
        text = (HERE / "static" / "pages.css").read_text(encoding="utf-8")
        headers = {"Cache-Control": "private, max-age=300", "X-Content-Type-Options": "nosniff"}
        return Response(text, media_type="text/css", headers=headers)

    def problem(request: Request, status: int, said: str) -> Response:
        if getattr(request.state, "person", None) is None or _is_picture(request):
            return JSONResponse({"detail": said}, status)
        values = {"here": "", "heading": _HEADINGS.get(status, "Something went wrong"), "said": said}
        return pages.render(request, "problem.html", values, status)

    @app.exception_handler(AnyHTTPException)
    async def refused(request: Request, error: AnyHTTPException) -> Response:
        """A person with a browser is sent to the login and comes back; a program gets its 401."""
        if error.status_code == 401:
            if (
                login is not None
                and request.method == "GET"
                and "text/html" in request.headers.get("accept", "")
            ):
                return RedirectResponse(login(request), status_code=302)
            return JSONResponse({"detail": "not logged in"}, status_code=401)
        return problem(request, error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        said = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()[:5])
        return problem(request, 422, said)

    @app.exception_handler(AudiorecError)
    async def failed(request: Request, error: AudiorecError) -> Response:
        status = 404 if isinstance(error, UnknownTitle) else 503 if error.retryable else 409
        return problem(request, status, str(error))

    return app


def _is_picture(request: Request) -> bool:
    return request.url.path.endswith((".svg", ".css"))
