"""Release: which version serves and how it came to that; promote, hold, roll back and reject for those who may."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, HTTPException, Request, Response

from audiorec.errors import AudiorecError
from audiorec.history import History
from audiorec.registry import CHALLENGER, CHAMPION
from audiorec.release import ReleaseControl
from audiorec.settings import HOLD_DAYS
from serving.following import hasty
from serving.pages.access import Person
from serving.pages.base import FROM_OUR_FORM, Pages, pages_of, see

router = APIRouter()

ENTRIES = 30
VERSIONS = 30
WAIT_SECONDS = 20.0
"""For how long a form waits for a run that moves aliases; a person looks at it meanwhile."""

Why = Annotated[str, Form(min_length=1, max_length=2000)]
Version = Annotated[str, Form(pattern=r"^\d{1,9}$")]
Expected = Annotated[str, Form(pattern=r"^\d{0,9}$")]
Days = Annotated[float, Form(ge=0, le=365)]


def may_release(request: Request) -> Person:
    """A dependency of every form here. Raises HTTPException (403)."""
    person: Person = request.state.person
    if not person.may_release:
        raise HTTPException(
            403,
            "Your role may look at releases, not move them: it needs the right to trigger the DAG audiobook_rollback.",
        )
    return person


MayRelease = Annotated[Person, Depends(may_release)]


def control_of(pages: Pages) -> ReleaseControl:
    return ReleaseControl(hasty(pages.settings), wait_seconds=WAIT_SECONDS)


def _page(request: Request, error: str | None = None, status: int = 200) -> Response:
    pages = pages_of(request)
    history = History(pages.store, pages.settings.release.model_name)
    values: dict[str, Any] = {
        "here": "release",
        "history": list(islice(history.newest_first(), ENTRIES)),
        "hold_days": HOLD_DAYS,
        "error": error,
        "note": pages.seal.read_note(request.query_params.get("note", "")),
        "away": None,
        "versions": [],
        "champion": None,
        "challenger": None,
        "hold": None,
    }
    try:
        registry = control_of(pages).registry
        versions = registry.versions()
        values |= {
            "versions": versions[:VERSIONS],
            "champion": registry.alias(CHAMPION),
            "challenger": registry.alias(CHALLENGER),
            "hold": registry.hold(),
        }
    except AudiorecError as problem:
        values["away"] = str(problem)
    serving = values["champion"]
    values["ahead"] = [
        one
        for one in values["versions"]
        if not one.rejected and (serving is None or one.as_of > serving.as_of)
    ]
    values["behind"] = [
        one
        for one in values["versions"]
        if serving is not None
        and not one.rejected
        and one.number != serving.number
        and one.as_of <= serving.as_of
        and not one.tags.get("verdict", "").startswith("refused")
    ]
    return pages.render(request, "release.html", values, status)


@router.get("/release")
def release(request: Request) -> Response:
    """How things stand, and the history."""
    return _page(request)


def _done(request: Request, act: Callable[[ReleaseControl], str]) -> Response:
    """Do it and show what was done; or show the page with what stood against it."""
    pages = pages_of(request)
    try:
        said = act(control_of(pages))
    except AudiorecError as error:
        return _page(request, str(error), 503 if error.retryable else 409)
    return see(request, f"/release?note={pages.seal.note(said)}")


def _who(person: Person) -> str:
    return f"{person.name} (pages)"


@router.post("/release/rollback", dependencies=FROM_OUR_FORM)
def rollback(
    request: Request,
    person: MayRelease,
    why: Why,
    expected: Version,
    to: Expected = "",
    hold_days: Days = HOLD_DAYS,
) -> Response:
    """Back to an earlier version; the present one is rejected for good."""

    def act(control: ReleaseControl) -> str:
        done = control.rollback(
            to=to or None, expected=expected, why=why, who=_who(person), hold_days=hold_days
        )
        return " ".join([done.line() + ".", *done.notes])

    return _done(request, act)


@router.post("/release/promote", dependencies=FROM_OUR_FORM)
def promote(
    request: Request,
    person: MayRelease,
    why: Why,
    version: Version,
    expected: Expected = "",
    override_hold: Annotated[bool, Form()] = False,
) -> Response:
    """Forward to a version that the gate only registered."""

    def act(control: ReleaseControl) -> str:
        promoted = control.promote(
            version, why=why, who=_who(person), expected=expected, override_hold=override_hold
        )
        return f"champion moved to version {promoted.number} ({promoted.as_of})."

    return _done(request, act)


@router.post("/release/hold", dependencies=FROM_OUR_FORM)
def hold(request: Request, person: MayRelease, why: Why, hold_days: Days = 0.0) -> Response:
    """Nothing is promoted for some days; 0: until it is taken back."""
    until = datetime.now(UTC) + timedelta(days=hold_days) if hold_days else None

    def act(control: ReleaseControl) -> str:
        control.hold(why=why, who=_who(person), until=until)
        return f"nothing is promoted until {f'{until:%Y-%m-%d %H:%M} UTC' if until else 'the hold is taken back'}."

    return _done(request, act)


@router.post("/release/unhold", dependencies=FROM_OUR_FORM)
def unhold(request: Request, person: MayRelease, why: Why) -> Response:
    """The hold is taken back."""

    def act(control: ReleaseControl) -> str:
        held = control.release_hold(why=why, who=_who(person))
        return f"no longer held ({held.line()})." if held else "nothing was held."

    return _done(request, act)


@router.post("/release/reject", dependencies=FROM_OUR_FORM)
def reject(request: Request, person: MayRelease, why: Why, version: Version) -> Response:
    """A version that does not serve is never eligible again."""

    def act(control: ReleaseControl) -> str:
        rejected = control.reject(version, why=why, who=_who(person))
        return f"version {version} ({rejected.as_of}) is rejected for good."

    return _done(request, act)
