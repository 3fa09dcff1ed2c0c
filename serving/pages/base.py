"""What all pages share: settings and caches behind them, how they are rendered, and what a form has to prove."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Depends, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from audiorec.forget import Forgotten
from audiorec.settings import Settings
from audiorec.withheld import Withheld
from serving.pages.access import Person, Seal
from serving.pages.evaluations import Evaluations
from serving.pages.releases import Releases

HERE = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'self'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, no-store",
    "Referrer-Policy": "same-origin",
}
"""No script at all; `no-store`, because a page may show what somebody listened to."""
MENU = (
    ("runs", "Runs"),
    ("compare", "Compare"),
    ("users", "User"),
    ("titles", "Title"),
    ("release", "Release"),
)


class Pages:
    """What stands behind the routes.

    Args:
        secret: of the server, for handles and forms (see `Seal`).
    """

    def __init__(self, settings: Settings, secret: str) -> None:
        self.settings = settings
        self.seal = Seal(secret)
        self.releases = Releases(settings)
        self.store = self.releases.store
        self.evaluations = Evaluations(self.store)
        self._environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "figure": figure,
            "count": count,
            "signed": signed,
            "seconds": seconds,
            "moment": moment,
            "path": lambda text: quote(str(text), safe=""),
            "query": lambda values: urlencode(values, doseq=True),
        }

    @functools.cached_property
    def withheld(self) -> Withheld:
        """Hidden titles and forgotten users. Raises BadSettings if a list of the settings cannot be read."""
        return Withheld(self.settings.serving, Forgotten(self.settings))

    def render(
        self, request: Request, template: str, values: Mapping[str, Any], status: int = 200
    ) -> HTMLResponse:
        """A page as HTML."""
        person: Person = request.state.person
        text = self._environment.get_template(template).render(
            root=request.scope.get("root_path", ""),
            person=person,
            menu=MENU,
            token=self.seal.form_token(person),
            **values,
        )
        return HTMLResponse(text, status, HEADERS)


def pages_of(request: Request) -> Pages:
    """The pages that a request is for."""
    found: Pages = request.app.state.pages
    return found


def see(request: Request, path: str) -> RedirectResponse:
    """After a form: on to a page, by GET."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}{path}", 303)


def from_our_form(request: Request, token: Annotated[str, Form()] = "") -> None:
    """A dependency of every POST: it comes from a form that this person was shown. Raises HTTPException (403)."""
    person: Person = request.state.person
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin" or not pages_of(
        request
    ).seal.is_from_a_form(token, person):
        raise HTTPException(
            403, "This did not come from a form of these pages, or the form is old. Load the page again."
        )


FROM_OUR_FORM = [Depends(from_our_form)]


# --- how values are written


def figure(value: float | None, digits: int = 3) -> str:
    """A share or a score; a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def count(value: float) -> str:
    """A number with its thousands apart; whole where it is."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3g}"


def signed(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:+.{digits}f}"


def seconds(value: float | None) -> str:
    """How long something took: `34 s`, `12 min`, `1 h 05`."""
    if value is None:
        return "–"
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 99.5:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d}"


def moment(value: str | datetime | date) -> str:
    """A moment to the minute, UTC."""
    return str(value)[:16].replace("T", " ")
