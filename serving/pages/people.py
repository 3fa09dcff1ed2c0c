"""User: what somebody listened to, what is recommended and why, and what would change without some of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Query, Request, Response

from audiorec.reasons import PARTS
from audiorec.recommend import Answer, Asked, Recommendation, Recommender
from serving.pages.base import FROM_OUR_FORM, Pages, pages_of, see
from serving.pages.releases import Loaded

router = APIRouter()

SHOWN = 20
"""Titles recommended on the page."""
SIGNALS = {
    "stream": "listened",
    "follow": "follows",
    "preview": "previewed",
    "intent_to_pay": "looked at buying",
}


@dataclass(frozen=True)
class Heard:
    """A title of the history: how it was touched, when last, and whether it is taken out for now."""

    kind: str
    item_id: str
    title: str
    signals: tuple[str, ...]
    day: date
    without: bool

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.item_id}"


@dataclass(frozen=True)
class Ranked:
    """A recommendation with its place, and the place that it had with the whole history (None: not among those shown)."""

    place: int
    before: int | None
    title: Recommendation

    @property
    def parts(self) -> list[tuple[str, float]]:
        """The parts of the score by name; empty where popularity alone decides."""
        found = self.title.detail.parts if self.title.detail else {}
        return [(name, found[name]) for name in PARTS if name in found]


def user_of(pages: Pages, handle: str) -> str:
    """The pseudonym behind a handle. Raises HTTPException (404) also for who is forgotten."""
    user = pages.seal.user(handle)
    if user is None or pages.withheld.is_forgotten(user):
        raise HTTPException(
            404, "There is no such user, or the address is from before a change of the server's key."
        )
    return user


def row_of(loaded: Loaded, user: str) -> int:
    """The user's row in a version. Raises HTTPException (404) if the version does not know the user."""
    row = loaded.recommender.profiles.row(user)
    if row is None:
        raise HTTPException(
            404, f"Version {loaded.version} ({loaded.recommender.as_of}) does not know this user."
        )
    return row


def history(
    recommender: Recommender, row: int, without: frozenset[tuple[str, str]] = frozenset()
) -> list[Heard]:
    """Titles of a user's history, the latest first, each once with all that was done to it."""
    found: dict[tuple[str, int], list[str]] = {}
    last: dict[tuple[str, int], date] = {}
    profiles = recommender.profiles
    for one, day in zip(profiles.of_user(row).history, profiles.touched_on(row), strict=True):
        key = one.item_type, one.idx
        found.setdefault(key, []).append(SIGNALS[one.signal])
        last[key] = max(day, last.get(key, day))
    heard = [
        Heard(
            kind,
            recommender.item_id(kind, idx),
            recommender.title(kind, idx),
            tuple(dict.fromkeys(signals)),
            last[kind, idx],
            (kind, recommender.item_id(kind, idx)) in without,
        )
        for (kind, idx), signals in found.items()
    ]
    return sorted(heard, key=lambda one: one.day, reverse=True)


def recommended(
    pages: Pages, recommender: Recommender, user: str, without: Sequence[tuple[str, str]] = (), k: int = SHOWN
) -> Answer:
    """What the service would answer now, hidden titles left out; as if some of the history had never been."""
    return recommender.answer(pages.withheld.apply(Asked(user_id=user, k=k, without=without)))


def ranked(answer: Answer, before: Answer) -> list[Ranked]:
    """Recommendations by place, with their places in another answer."""
    places = {one.audiobook_id: place for place, one in enumerate(before.titles, 1)}
    return [Ranked(place, places.get(one.audiobook_id), one) for place, one in enumerate(answer.titles, 1)]


def about(loaded: Loaded, user: str) -> dict[str, Any]:
    """Who it is, as far as the release says."""
    recommender = loaded.recommender
    return {"name": user, "line": recommender.about(user)}


# --- routes


@router.get("/users")
def find(request: Request, missing: bool = False) -> Response:
    """A form for an id or a pseudonym, and an example of each kind of user."""
    pages = pages_of(request)
    loaded = pages.releases.get()
    examples = [
        (kind, pages.seal.handle(user))
        for kind, user in loaded.recommender.example_users().items()
        if user is not None and not pages.withheld.is_forgotten(user)
    ]
    values = {
        "here": "users",
        "examples": examples,
        "missing": missing,
        "loaded": loaded,
        "users": len(loaded.recommender.profiles.users),
        "pseudonyms": pages.settings.privacy.user_ids == "pseudonyms",
    }
    return pages.render(request, "find_user.html", values, 404 if missing else 200)


@router.post("/users/find", dependencies=FROM_OUR_FORM)
def found(
    request: Request,
    user: Annotated[str, Form(max_length=500)] = "",
    candidate: Annotated[str, Form(pattern=r"^\d{0,9}$")] = "",
    champion: Annotated[str, Form(pattern=r"^\d{0,9}$")] = "",
) -> Response:
    """On to a user's page, or back to the comparison where the form was there; the id itself gets into no address."""
    pages = pages_of(request)
    loaded = pages.releases.get(candidate or None)
    row = loaded.recommender.profiles.row(user)
    if row is None or pages.withheld.is_forgotten(user):
        return see(request, "/users?missing=true")
    handle = pages.seal.handle(str(loaded.recommender.profiles.users["user_id"].iloc[row]))
    if candidate and champion:
        return see(request, f"/compare?candidate={candidate}&champion={champion}&user={handle}#user")
    return see(request, f"/users/{handle}")


@router.get("/users/{handle}")
def one_user(
    request: Request,
    handle: str,
    without: Annotated[list[str] | None, Query()] = None,
    version: Annotated[str | None, Query(pattern=r"^\d{1,9}$")] = None,
) -> Response:
    """History left, recommendations right; what is ticked (`without`) counts as never touched."""
    pages = pages_of(request)
    user = user_of(pages, handle)
    loaded = pages.releases.get(version)
    recommender = loaded.recommender
    row = row_of(loaded, user)
    pairs = [one.partition(":") for one in without or []]
    taken = [(kind, item_id) for kind, _, item_id in pairs if kind in ("audiobook", "podcast")]
    heard = history(recommender, row, frozenset(taken))
    before = recommended(pages, recommender, user)
    now = recommended(pages, recommender, user, taken) if taken else before
    places = {one.audiobook_id for one in now.titles}
    values = {
        "here": "users",
        "about": about(loaded, user),
        "loaded": loaded,
        "handle": handle,
        "version": version,
        "heard": heard,
        "now": now,
        "ranked": ranked(now, before),
        "gone": [
            (place, one) for place, one in enumerate(before.titles, 1) if one.audiobook_id not in places
        ],
        "what_if": sum(one.without for one in heard),
    }
    return pages.render(request, "user.html", values)
