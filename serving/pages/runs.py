"""Runs: dates by tasks, verdicts, row counts, durations, quality over dates beside rivals, and the champion's moves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from itertools import islice
from typing import Annotated, Any, Literal

import pandas as pd
from fastapi import APIRouter, HTTPException, Query, Request, Response

from audiorec.chain import CHAIN
from audiorec.errors import AudiorecError, Corrupt
from audiorec.history import History, Recorded
from audiorec.oncall.pages import PREFIX, browsable
from audiorec.oncall.sinks import recorded
from audiorec.registry import CHAMPION
from audiorec.settings import Settings
from audiorec.standing import failed_with, standings
from audiorec.store import Manifest, Store
from serving.pages import charts
from serving.pages.base import pages_of
from serving.pages.evaluations import Evaluations, hit_metric

router = APIRouter()

DATES = 14
"""Dates on a page of the table."""
CHART_DATES = 60
MOVES = 8
SET_ASIDE = "rows set aside"
COUNTED = (
    ("extract", "interactions", "events that count"),
    ("extract", SET_ASIDE, "rows set aside"),
    ("extract", "users", "users"),
    ("refresh", "active_users", "of them active"),
    ("extract", "audiobooks", "audiobooks"),
    ("refresh", "available", "of them available"),
    ("extract", "podcasts", "podcasts"),
    ("build_graph", "release.audiobook_audiobook", "edges audiobook–audiobook"),
    ("build_graph", "release.audiobook_podcast", "edges audiobook–podcast"),
)
"""Row counts of the overview: task, name of the count, and what it is called."""

State = Literal["done", "failed", "damaged", "missing"]


@dataclass(frozen=True)
class Cell:
    """One task of one date, as the store has it."""

    task: str
    state: State
    said: str = ""
    """Verdict, or what is wrong."""
    seconds: float | None = None
    run: dict[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    others: int = 0
    """Further results of the task and date, of other inputs, settings or code."""

    @property
    def counts(self) -> dict[str, float]:
        if self.manifest is None:
            return {}
        found = dict(self.manifest.facts.get("counts", {}))
        rejects = self.manifest.facts.get("rejects")
        if isinstance(rejects, dict):
            # By table and reason; what extract counts as `rejects` are those of the catalogue's tables and users.
            found[SET_ASIDE] = sum(rejects.values())
        return found


@dataclass(frozen=True)
class Day:
    """One date: its tasks in the order of the chain."""

    as_of: str
    cells: dict[str, Cell]

    @property
    def verdict(self) -> str:
        """What the gate said, empty where it was not asked."""
        return self.cells["promote"].said

    @property
    def word(self) -> str:
        """The verdict in a word: promoted, registered, refused; empty without one."""
        words = self.verdict.partition(":")[0].split()
        return words[-1] if words else ""

    @property
    def seconds(self) -> float:
        return sum(cell.seconds or 0.0 for cell in self.cells.values())

    def counted(self, task: str, name: str) -> float | None:
        return self.cells[task].counts.get(name)


def dates(store: Store) -> list[str]:
    """Dates for which any task has a result, the latest first."""
    found = {key for task in CHAIN for key in store.keys(task)}
    return sorted((key for key in found if _is_date(key)), reverse=True)


def _is_date(key: str) -> bool:
    try:
        date.fromisoformat(key)
    except ValueError:
        return False
    return True


def day_of(store: Store, key: str, alerts: list[dict[str, Any]]) -> Day:
    """How a date stands: of each task the result that belongs to the date's last one.

    Several results of one date may lie side by side. The newest of the last task that has any is taken, with those
    that it was made of; so the cells of a row belong together.
    """
    found: dict[str, Manifest] = {}
    others: dict[str, int] = {}
    damaged: dict[str, str] = {}
    for task in reversed(CHAIN):
        try:
            versions = store.versions(task, key)
        except Corrupt as error:
            damaged[task] = str(error)
            continue
        others[task] = max(len(versions) - 1, 0)
        if task not in found and versions:
            fitting = [one for one in versions if _fits(one, found)] or versions
            found[task] = max(fitting, key=store.used_at)
            for name, fingerprint in found[task].inputs.items():
                if name in CHAIN and name not in found:
                    made_of = _find(store, name, key, fingerprint)
                    if made_of is not None:
                        found[name] = made_of
    cells = {}
    for task in CHAIN:
        if task in damaged:
            cells[task] = Cell(task, "damaged", damaged[task])
        elif task in found:
            run = store.run_record(found[task])
            failure = found[task].facts.get("failure")
            said = failure or run.get("verdict") or found[task].facts.get("verdict") or ""
            cells[task] = Cell(
                task,
                "failed" if failure else "done",
                str(said),
                run.get("seconds"),
                run,
                found[task],
                others[task],
            )
        else:
            code = failed_with(task, key, alerts)
            cells[task] = Cell(task, "failed" if code else "missing", code or "")
    return Day(key, cells)


def _fits(manifest: Manifest, found: dict[str, Manifest]) -> bool:
    return all(
        found[name].fingerprint == fingerprint
        for name, fingerprint in manifest.inputs.items()
        if name in found
    )


def _find(store: Store, task: str, key: str, fingerprint: str) -> Manifest | None:
    try:
        return store.find(task, key, fingerprint)
    except Corrupt:
        return None


# --- quality


@dataclass(frozen=True)
class Quality:
    """HR@k of one model on one date's hold-out: the full panel, users with events."""

    as_of: str
    model: str
    value: float
    low: float
    high: float
    users: int


def quality(evaluations: Evaluations, store: Store, keys: list[str]) -> list[Quality]:
    """The hit rate of every model on every date that was evaluated, the earliest first."""
    found = []
    for key in sorted(keys):
        try:
            versions = store.versions("evaluate", key)
            if not versions:
                continue
            table = evaluations.of(max(versions, key=store.used_at))
        except Corrupt:
            continue
        chosen = table[
            (table["panel"] == "full")
            & (table["segment"] == "all")
            & (table["metric"] == hit_metric(table))
            & table["value"].notna()
        ]
        found += [
            Quality(key, str(row.model), float(row.value), float(row.low), float(row.high), int(row.users))
            for row in chosen.itertuples()
        ]
    return found


def moves(store: Store, model: str) -> Iterator[Recorded]:
    """Moves of the champion, the newest first."""
    for one in History(store, model).newest_first():
        if one.entry.alias == CHAMPION and one.outcome == "done":
            yield one


# --- routes


@router.get("/runs")
def runs(request: Request, before: Annotated[date | None, Query()] = None) -> Response:
    """All dates, the latest first."""
    pages = pages_of(request)
    every = dates(pages.store)
    keys = [key for key in every if before is None or key < before.isoformat()]
    alerts = recorded(pages.settings)
    judged = quality(pages.evaluations, pages.store, every[:CHART_DATES])
    shown = [day_of(pages.store, key, alerts) for key in keys[:DATES]]
    shown_keys = {day.as_of for day in shown}
    return pages.render(
        request,
        "runs.html",
        {
            "here": "runs",
            "days": shown,
            "tasks": list(CHAIN),
            "counted": COUNTED,
            "earlier": keys[DATES - 1] if len(keys) > DATES else None,
            "first_page": before is None,
            "quality": [
                one
                for one in sorted(judged, key=lambda one: one.as_of, reverse=True)
                if one.as_of in shown_keys
            ],
            "models": list(dict.fromkeys(one.model for one in judged)),
            "judged_dates": len({one.as_of for one in judged}),
            "moves": list(islice(moves(pages.store, pages.settings.release.model_name), MOVES)),
        },
    )


@router.get("/charts/quality.svg")
def quality_chart(request: Request, theme: Literal["light", "dark"] = "light") -> Response:
    """The hit rate over dates, as a picture."""
    pages = pages_of(request)
    judged = quality(pages.evaluations, pages.store, dates(pages.store)[:CHART_DATES])
    moved = {
        one.entry.after.as_of: one.entry.action
        for one in reversed(list(moves(pages.store, pages.settings.release.model_name)))
        if one.entry.after is not None
    }
    return Response(charts.quality(judged, moved, theme), media_type="image/svg+xml", headers=charts.HEADERS)


@router.get("/runs/{as_of}")
def one_date(request: Request, as_of: date, check: bool = False) -> Response:
    """One date: every task's result in full; with `check` also whether a run would use them now."""
    pages = pages_of(request)
    key = as_of.isoformat()
    if key not in dates(pages.store):
        raise HTTPException(404, f"No task has a result for {key}.")
    day = day_of(pages.store, key, recorded(pages.settings))
    evaluate = day.cells["evaluate"].manifest
    table = pages.evaluations.of(evaluate) if evaluate is not None else None
    return pages.render(
        request,
        "date.html",
        {
            "here": "runs",
            "day": day,
            "purposes": {task.name: task.purpose for task in CHAIN.values()},
            "links": {name: _links(request, pages.settings, cell) for name, cell in day.cells.items()},
            "panels": []
            if table is None
            else [(panel, by_model(table, panel)) for panel in ("full", "known")],
            "metrics": [] if table is None else list(dict.fromkeys(table["metric"])),
            "standing": _standing(pages.settings, as_of) if check else None,
        },
    )


def _links(request: Request, settings: Settings, cell: Cell) -> dict[str, str]:
    """A result's links that a browser can open."""
    ui = str(request.scope.get("root_path", "")).removesuffix(PREFIX)
    found = browsable(cell.run.get("links", {}), settings, ui)
    return {
        name: address
        for name, address in found.items()
        if address.startswith(("http://", "https://", "/recommender", f"{ui}/"))
    }


def _standing(settings: Settings, as_of: date) -> dict[str, Any]:
    try:
        return {"tasks": list(standings(settings, [as_of], recorded(settings))), "error": None}
    except AudiorecError as error:
        return {"tasks": [], "error": str(error)}


def by_model(
    table: pd.DataFrame, panel: str, segments: tuple[str, ...] = ("all", "warm", "cold", "none")
) -> list[dict[str, Any]]:
    """A row a model and segment with its figures by metric, in the order of the file."""
    found = []
    chosen = table[table["panel"] == panel]
    for (model, segment), rows in chosen.groupby(["model", "segment"], sort=False):
        if segment in segments:
            figures = {row.metric: row for row in rows.itertuples()}
            found.append({"model": model, "segment": segment, "figures": figures})
    return sorted(found, key=lambda row: segments.index(row["segment"]))
