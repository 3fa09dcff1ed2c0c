"""The application: routes, and what stands behind them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from datetime import time as clock_time
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic_core import to_json

from audiorec import __version__
from audiorec.forget import Forgotten
from audiorec.recommend import Answer, Asked, NewTitle, Recommender, Similar, Touch, UnknownTitle
from audiorec.settings import Settings
from audiorec.withheld import Withheld
from serving.batching import Batcher, Overloaded
from serving.following import Follower, Served
from serving.keys import Keys, Limiter, load_keys
from serving.metrics import Metrics
from serving.middleware import Gate
from serving.schemas import (
    MAX_K,
    BatchRequest,
    BatchResponse,
    ItemType,
    NewTitleIn,
    Problem,
    Readiness,
    RecommendationRequest,
    RecommendationResponse,
    SimilarResponse,
    SimilarToTextRequest,
)

log = logging.getLogger("serving")

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body cannot be read as text"},
    401: {"model": Problem, "description": "No valid API key"},
    408: {"model": Problem, "description": "The body came too slowly"},
    413: {"model": Problem, "description": "The body is too long"},
    422: {"model": Problem, "description": "The request says something that cannot be"},
    429: {"model": Problem, "description": "Too many requests of this key"},
    503: {"model": Problem, "description": "No release is loaded yet, or too many requests wait"},
    504: {"model": Problem, "description": "It took too long"},
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "The release has no such title"}
}
ItemId = Annotated[str, Path(min_length=1, max_length=200, description="id in the catalogue")]
K = Annotated[int, Query(ge=1, le=MAX_K, description="titles wanted")]


@dataclass(frozen=True)
class _Work:
    """One request with the version that answers it."""

    recommender: Recommender
    asked: Asked
    had_user: bool


class Service:
    """Everything behind the routes.

    Args:
        settings: all of them.
        follower: keeps the version that answers.
        withheld: hidden titles and forgotten users.
    """

    def __init__(
        self,
        settings: Settings,
        follower: Follower | None = None,
        withheld: Withheld | None = None,
        keys: Keys | None = None,
    ) -> None:
        self.settings, own = settings, settings.serving
        self.metrics = Metrics()
        self.follower = follower or Follower(
            settings, told=lambda how: self.metrics.versions.labels(how).inc()
        )
        self.withheld = withheld or Withheld(own, Forgotten(settings))
        self.keys = keys or Keys(load_keys(settings))
        self.limiter = Limiter(own.requests_per_second, own.burst)
        self.batcher: Batcher[_Work, bytes] = Batcher(
            self._answer, own.workers, own.max_batch, own.max_waiting
        )
        self.metrics.waiting.set_function(lambda: float(self.batcher.waiting))

    def current(self) -> Served:
        """The version that answers now. Raises HTTPException (503) while there is none."""
        served = self.follower.current
        if served is None:
            raise HTTPException(503, "no release is loaded yet; see /readyz", {"Retry-After": "5"})
        return served

    async def recommend(self, served: Served, requests: Sequence[RecommendationRequest]) -> list[bytes]:
        """Answers as JSON, all of one version."""
        work = []
        for body in requests:
            asked = self.withheld.apply(_asked(body))
            work.append(_Work(served.recommender, asked, body.user_id is not None))
        texts = [one for body in requests for one in body.new_titles]
        if texts:
            # Here, because it is slow (the first time the model is loaded) and the others of a batch need not wait.
            await asyncio.to_thread(served.recommender.read_texts, [_new_title(one) for one in texts])
        try:
            answers = await asyncio.gather(*(self.batcher.submit(one) for one in work))
        except Overloaded:
            self.metrics.refusals.labels("load").inc()
            raise HTTPException(
                503, "too many requests wait; try again later", {"Retry-After": "1"}
            ) from None
        for body in requests:
            surface = body.surface if body.surface in self.settings.serving.surfaces else "other"
            personal = any((body.user_id, body.history, body.artists, body.age is not None))
            self.metrics.recommendations.labels(
                surface, "asked for somebody" if personal else "anybody"
            ).inc()
        return answers

    def _answer(self, work: Sequence[_Work]) -> list[bytes | BaseException]:
        """A batch, in a thread: prepare each, search for all that one version answers, name and explain each."""
        self.metrics.batch.observe(len(work))
        results: list[bytes | BaseException] = [b""] * len(work)
        by_version: dict[int, list[int]] = {}
        for number, one in enumerate(work):
            by_version.setdefault(id(one.recommender), []).append(number)
        for numbers in by_version.values():
            recommender = work[numbers[0]].recommender
            prepared = []
            for number in numbers:
                try:
                    prepared.append((number, recommender.prepare(work[number].asked)))
                except Exception as error:
                    results[number] = error
            found = recommender.find([one for _, one in prepared])
            for (number, ready), rows in zip(prepared, found, strict=True):
                try:
                    answer = recommender.finish(ready, rows)
                    results[number] = to_json(_response(recommender, answer, work[number].had_user))
                except Exception as error:
                    results[number] = error
        return results

    async def follow(self) -> None:
        """Look at the champion for ever."""
        while True:
            try:
                await asyncio.to_thread(self.follower.look)
            except Exception as error:
                log.error("the champion cannot be followed: %s: %s", type(error).__name__, error)
            await asyncio.sleep(self.settings.serving.poll_seconds)


def create_app(service: Service) -> FastAPI:
    """The application of a service."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(service.follow())
        yield
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following
        await asyncio.to_thread(service.batcher.close)

    app = FastAPI(
        title="Audiobook recommendations",
        version=__version__,
        description="Personal audiobook recommendations with 2T-HGNN (arXiv 2403.05185). An independent implementation.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        responses=_PROBLEMS,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.service = service
    _describe_keys(app)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # Without what was sent: an answer that is logged somewhere must hold no id.
        said = "; ".join(
            f"{'.'.join(str(part) for part in one['loc'][1:]) or 'body'}: {one['msg']}"
            for one in error.errors()[:5]
        )
        return JSONResponse({"detail": said}, 422)

    @app.exception_handler(UnknownTitle)
    async def unknown(request: Request, error: UnknownTitle) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 404 if request.method == "GET" else 422)

    @app.post("/v1/recommendations", response_model=RecommendationResponse, tags=["recommendations"])
    async def recommendations(body: RecommendationRequest) -> Response:
        """Audiobooks for a user, or for whoever the request describes, with reasons."""
        served = service.current()
        (answer,) = await service.recommend(served, [body])
        return _json(answer, served)

    @app.post("/v1/recommendations/batch", response_model=BatchResponse, tags=["recommendations"])
    async def batch(body: BatchRequest, request: Request) -> Response:
        """The same for up to a hundred requests, all answered by one version. Counts as that many."""
        holder, cost = request.state.holder, len(body.requests) - 1
        if cost and (wait := service.limiter.wait(holder, cost)):
            service.metrics.refusals.labels("rate").inc()
            raise HTTPException(
                429, "too many requests of this key", {"Retry-After": str(max(1, round(wait)))}
            )
        served = service.current()
        answers = await service.recommend(served, body.requests)
        return _json(b'{"responses":[' + b",".join(answers) + b"]}", served)

    async def similar(kind: ItemType, item_id: str, k: int) -> Response:
        served = service.current()
        found = await asyncio.to_thread(
            served.recommender.similar, kind, item_id, k + len(service.withheld.hidden())
        )
        return _json(_similar(served, found, service.withheld.hidden(), k), served)

    @app.get(
        "/v1/audiobooks/{audiobook_id:path}/similar",
        response_model=SimilarResponse,
        tags=["titles"],
        responses=_NOT_FOUND,
    )
    async def similar_audiobooks(audiobook_id: ItemId, k: K = 10) -> Response:
        """Audiobooks near an audiobook."""
        return await similar("audiobook", audiobook_id, k)

    @app.get(
        "/v1/podcasts/{podcast_id:path}/similar",
        response_model=SimilarResponse,
        tags=["titles"],
        responses=_NOT_FOUND,
    )
    async def similar_podcasts(podcast_id: ItemId, k: K = 10) -> Response:
        """Podcasts near a podcast."""
        return await similar("podcast", podcast_id, k)

    @app.post("/v1/audiobooks/similar", response_model=SimilarResponse, tags=["titles"])
    async def similar_to_text(body: SimilarToTextRequest) -> Response:
        """Audiobooks near one that was published after the release was built, by its text alone."""
        served, hidden = service.current(), service.withheld.hidden()
        found = await asyncio.to_thread(
            served.recommender.similar_to_text, _new_title(body.title), body.k + len(hidden)
        )
        return _json(_similar(served, found, hidden, body.k), served)

    @app.get("/livez", tags=["operation"], responses={200: {"content": {"text/plain": {}}}})
    async def alive() -> Response:
        """Whether the process answers at all."""
        return Response("alive", media_type="text/plain")

    @app.get("/readyz", response_model=Readiness, tags=["operation"], responses={503: {"model": Readiness}})
    async def ready() -> JSONResponse:
        """Whether a release is loaded, and which."""
        served, follower = service.follower.current, service.follower
        refused = follower.refused
        state = Readiness(
            ready=served is not None,
            model_version=served.version if served else None,
            data_date=served.recommender.as_of if served else None,
            origin=served.origin if served else None,
            exact=served.recommender.search.exact if served else None,
            refused=f"version {refused.version}: {refused.reason}" if refused else None,
            registry=follower.unreachable,
        )
        return JSONResponse(state.model_dump(mode="json"), 200 if served else 503)

    @app.get("/metrics", tags=["operation"], responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        served = service.follower.current
        as_of = datetime.combine(served.recommender.as_of, clock_time()) if served else None
        page = service.metrics.page(served.version if served else None, as_of)
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def asgi(service: Service) -> Any:
    """The application behind its gate, as a server takes it."""
    app = create_app(service)
    return Gate(app, service.settings.serving, service.keys, service.limiter, service.metrics)


def _describe_keys(app: FastAPI) -> None:
    """Say in the OpenAPI document that a key is needed (the gate checks it, before a body is read)."""
    made = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            schema.setdefault("components", {})["securitySchemes"] = {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}
            }
            for path, methods in schema["paths"].items():
                for operation in methods.values():
                    operation["security"] = [] if path in ("/livez", "/readyz") else [{"key": []}]
        return dict(app.openapi_schema or {})

    app.openapi = described  # type: ignore[method-assign]


def _json(content: bytes, served: Served) -> Response:
    return Response(content, media_type="application/json", headers={"X-Model-Version": served.version})


def _asked(body: RecommendationRequest) -> Asked:
    plays: dict[str, float] = {}
    for artist in body.artists:
        plays[artist.id] = plays.get(artist.id, 0.0) + artist.plays
    return Asked(
        user_id=body.user_id,
        history=[Touch(one.type, one.id, one.signal) for one in body.history],
        artists=plays,
        without=[(one.type, one.id) for one in body.without],
        country=body.country,
        age=body.age,
        k=body.k,
        language=body.language,
        exclude=body.exclude,
        new_titles=[_new_title(one) for one in body.new_titles],
        reasons=body.reasons,
    )


def _new_title(one: NewTitleIn) -> NewTitle:
    return NewTitle(one.id, one.title, one.description, one.author, one.language, one.genre, one.published_on)


def _response(recommender: Recommender, answer: Answer, had_user: bool) -> dict[str, Any]:
    """A `RecommendationResponse` as plain values; the model itself would be checked once more, at a millisecond each."""
    titles = []
    for one in answer.titles:
        found: dict[str, Any] = {
            "id": one.audiobook_id,
            "title": one.title,
            "author": one.author,
            "score": round(one.score, 6),
            "reason": one.reason,
            "evidence": None,
            "parts": None,
        }
        if one.detail is not None:
            found["parts"] = one.detail.parts
            if (evidence := one.detail.evidence) is not None:
                found["evidence"] = {
                    "type": evidence.item_type,
                    "id": recommender.item_id(evidence.item_type, evidence.idx),
                    "title": recommender.title(evidence.item_type, evidence.idx),
                    "signal": evidence.signal,
                    "link": evidence.link,
                    "users": evidence.users,
                    "similarity": evidence.similarity,
                    "via": None if evidence.via is None else recommender.title("audiobook", evidence.via),
                    "drop": round(evidence.drop, 6),
                }
        titles.append(found)
    return {
        "recommendations": titles,
        "user": "none" if not had_user else "known" if answer.known else "unknown",
        "basis": answer.basis,
        "popular": answer.popular,
        "note": _note(answer),
        "ignored": answer.ignored,
        "model_version": recommender.version,
        "data_date": recommender.as_of,
    }


def _note(answer: Answer) -> str | None:
    if not answer.popular:
        return None
    where = "in the country" if "country" in answer.basis else "everywhere"
    return f"Nothing personal is known, so these are the titles that are popular {where}."


def _similar(served: Served, found: Sequence[Similar], hidden: frozenset[str], k: int) -> bytes:
    shown = [one for one in found if one.item_id not in hidden][:k]
    return to_json(
        {
            "similar": [
                {
                    "id": one.item_id,
                    "title": one.title,
                    "similarity": round(one.similarity, 6),
                    "users": one.users,
                }
                for one in shown
            ],
            "model_version": served.version,
            "data_date": served.recommender.as_of,
        }
    )
