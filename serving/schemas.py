"""What goes in and what comes out, as the OpenAPI document shows it."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_K = 200
MAX_BATCH = 100

Id = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=64)]
ItemType = Literal["audiobook", "podcast"]
Signal = Literal["stream", "follow", "preview", "intent_to_pay"]


class _In(BaseModel):
    """A field that nobody knows is refused: a typo must not pass unseen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TouchIn(_In):
    """A title that the user touched since the release was built."""

    type: ItemType = Field(description="audiobook or podcast")
    id: Id = Field(description="its id in the catalogue")
    signal: Signal = Field("stream", description="what the user did")


class ArtistIn(_In):
    """An artist that the user heard."""

    id: Id = Field(description="artist id (track id where the release's music.unit is track)")
    plays: float = Field(1.0, gt=0, le=1_000_000, description="how often")


class TitleRef(_In):
    """A title by type and id."""

    type: ItemType
    id: Id


class NewTitleIn(_In):
    """An audiobook that the release does not hold, placed by its text."""

    id: Id = Field("new", description="any id; the answer names the title by it")
    title: str = Field(min_length=1, max_length=500)
    description: str = Field("", max_length=10_000)
    author: str | None = Field(None, max_length=200)
    language: Word | None = Field(None, description="as the catalogue spells it")
    genre: Word | None = Field(None, description="as the catalogue spells it")
    published_on: date | None = None


class RecommendationRequest(_In):
    """For whom, and which titles. Every field may be left out."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {"user_id": "u1445", "k": 3, "surface": "home"},
                {
                    "country": "CA",
                    "age": 26,
                    "artists": [{"id": "ar0001", "plays": 12}],
                    "history": [{"type": "podcast", "id": "p0001", "signal": "stream"}],
                    "k": 3,
                },
            ]
        },
    )

    user_id: Id | None = Field(None, description="a user of the source tables; unknown ones are strangers")
    history: list[TouchIn] = Field(
        default_factory=list,
        max_length=200,
        description="titles touched since the data date, the newest first",
    )
    artists: list[ArtistIn] = Field(
        default_factory=list, max_length=500, description="music heard since then"
    )
    without: list[TitleRef] = Field(
        default_factory=list, max_length=200, description="titles to be taken as never touched: what if?"
    )
    country: Word | None = Field(None, description="as the users table spells it")
    age: float | None = Field(None, ge=0, le=130, description="years")
    k: int = Field(10, ge=1, le=MAX_K, description="titles wanted")
    language: Word | None = Field(None, description="only titles in this language")
    surface: Word = Field("other", description="where they will be shown; for metrics")
    exclude: list[Id] = Field(
        default_factory=list, max_length=1_000, description="audiobooks not to be shown"
    )
    new_titles: list[NewTitleIn] = Field(
        default_factory=list, max_length=20, description="audiobooks published after the release was built"
    )
    reasons: bool = Field(True, description="whether each title gets a reason")


class BatchRequest(_In):
    """Several requests; one version answers all of them."""

    requests: list[RecommendationRequest] = Field(min_length=1, max_length=MAX_BATCH)


class SimilarToTextRequest(_In):
    """Titles near an audiobook that the release does not hold."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "title": {
                        "title": "The lighthouse keeper's secret",
                        "description": "A murder on an island.",
                    },
                    "k": 3,
                }
            ]
        },
    )

    title: NewTitleIn
    k: int = Field(10, ge=1, le=MAX_K)


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EvidenceOut(_Out):
    """A title of the user's own history behind a recommendation."""

    type: ItemType
    id: str
    title: str
    signal: Signal
    link: Literal["itself", "co_listened", "path", "hgnn", "text"] = Field(
        description="itself: the user showed interest in this very title; co_listened: people streamed both; path: over "
        "a third title; hgnn: near in the graph's space; text: like descriptions"
    )
    users: int | None = Field(None, description="people who streamed both, never fewer than five")
    similarity: float | None = Field(None, description="cosine")
    via: str | None = Field(None, description="the third title of a path")
    drop: float = Field(description="what the score's affinities lose without this title")


class RecommendationOut(_Out):
    """One audiobook."""

    id: str
    title: str
    author: str | None
    score: float
    reason: str = Field(description="a sentence; empty where no reasons were asked for")
    evidence: EvidenceOut | None = None
    parts: dict[str, float] | None = Field(
        None,
        description="what the score is the sum of: popularity, country, audiobooks, podcasts, music, towers",
    )


class RecommendationResponse(_Out):
    """Titles, best first, and what they rest on."""

    recommendations: list[RecommendationOut]
    user: Literal["known", "unknown", "none"] = Field(
        description="whether the release knows the user id; none: the request had none"
    )
    basis: list[str] = Field(
        description="what of the user was used: audiobooks, podcasts, music, age, country"
    )
    popular: bool = Field(
        description="nothing personal was known: these are the popular titles of the country"
    )
    note: str | None = Field(description="a sentence on that")
    ignored: dict[str, list[str]] = Field(description="ids of the request that the release does not know")
    model_version: str
    data_date: date


class BatchResponse(_Out):
    """Answers in the order of the requests."""

    responses: list[RecommendationResponse]


class SimilarOut(_Out):
    """A title near another one."""

    id: str
    title: str
    similarity: float = Field(description="cosine in HGNN space")
    users: int = Field(description="people who streamed both; 0 where they are fewer than five")


class SimilarResponse(_Out):
    """Titles of the same type, nearest first."""

    similar: list[SimilarOut]
    model_version: str
    data_date: date


class Problem(_Out):
    """Why there is no answer."""

    detail: str


class Readiness(_Out):
    """Whether the service answers, with which version, and what became of the last one that it refused."""

    ready: bool
    model_version: str | None
    data_date: date | None
    origin: str | None
    exact: bool | None = Field(
        description="whether results are exact (they are up to index.exact_limit titles)"
    )
    refused: str | None
    registry: str | None = Field(description="what the registry said when it last did not answer")
