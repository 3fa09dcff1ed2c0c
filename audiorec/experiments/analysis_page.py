"""The page of the analysis: the paper's section 3 beside this source's own figures, with plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from audiorec.experiments.cells import Result
from audiorec.experiments.pages import COLUMNS, Page, finish

PAPER = {
    ("concentration", "users", "audiobooks and podcasts"): "75%",
    ("concentration", "audiobooks", "catalogue"): "over 80%",
    ("podcasts before audiobooks", "first audiobook listeners", "on an earlier day"): "over 70%",
    ("odds after a signal", "follow", ""): "+118%",
    ("odds after a signal", "preview", ""): "+18%",
    ("odds after a signal", "intent_to_pay", ""): "+13%",
}
"""What the paper reports, by panel, model and segment."""
_OWN, _OTHER = "#c2410c", "#475569"
_MATRICES = ("co-occurrence of signals", "co-occurrence of genres", "content types")
_KEY = ["panel", "model", "segment", "metric"]


def write(page: Page, results: Sequence[Result]) -> Path:
    """Write the page, its CSV and its plots (`analysis_*.png`)."""
    page.out.mkdir(parents=True, exist_ok=True)
    for old in page.out.glob(f"{page.name}_*.png"):
        # A part that the source lacks now must not show the plot of another day.
        old.unlink()
    each = [pd.read_csv(result.open("figures.csv")).assign(seed=str(result.cell.seed)) for result in results]
    mean = over_seeds(each)
    rows = pd.concat([mean, *each], ignore_index=True)
    rows = rows.assign(source=page.source, table=page.name)[list(COLUMNS)]
    curves = pd.read_parquet(results[0].open("curves.parquet"))
    missing: dict[str, str] = {}
    for result in reversed(results):
        missing.update(json.loads(result.open("missing.json").read_text()))
    facts = results[0].manifest.facts
    settings = page.experiment.settings(results[0].cell)
    window = settings.time.window_days
    about = (
        f"Events of {facts['first_day']} to {facts['last_day']} "
        f"(window: {window if window == 'all' else f'{window} days'}). "
        "Intervals are 95%, bootstrapped over users (of pairs: over their ends; of odds: robust errors by listener). "
        f"Figures of fewer than {settings.analysis.min_users} users are withheld."
    )
    body = [
        *_missing(missing),
        *_concentration(page, mean, curves),
        *_similarity(page, mean, curves),
        *_odds(page, mean),
        *_matrices(page, mean),
    ]
    bounds = {"bounds": f"{settings.analysis.pairs:,} pairs, {settings.analysis.bootstrap} draws an interval"}
    return finish(page, results, rows, about, body, [result.cell.seed for result in results], bounds)


def over_seeds(each: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Value and bounds of each figure averaged over the seeds, in the order of the first; its users are the fewest."""
    together = pd.concat(each, ignore_index=True)
    grouped = together.groupby(_KEY, sort=False, as_index=False)
    found = grouped.agg(
        value=("value", "mean"), low=("low", "mean"), high=("high", "mean"), users=("users", "min")
    )
    spread = grouped["value"].std()["value"].to_numpy()
    return found.assign(seed="mean", spread=spread)


def _missing(missing: dict[str, str]) -> list[str]:
    if not missing:
        return []
    withheld = {part: why for part, why in missing.items() if why.startswith("withheld")}
    others = [f"- {part}: {why}" for part, why in sorted(missing.items()) if part not in withheld]
    lines = ["## What this source cannot say", "", *others]
    if withheld:
        # A matrix may hold dozens: the parts are counted here and marked in the tables.
        panels = pd.Series([part.split(":")[0] for part in withheld]).value_counts(sort=False)
        counted = ", ".join(f"{panel} ({number})" for panel, number in panels.items())
        lines.append(f"- withheld, too few users behind a figure (an empty cell below): {counted}")
    return [*lines, ""]


def _part(mean: pd.DataFrame, panel: str) -> pd.DataFrame:
    return mean[mean["panel"] == panel]


def _percent(row: Any, plus: bool = False) -> str:
    """A share or change with its interval."""
    if not np.isfinite(row.value):
        return "-"
    form = "{:+.1%}" if plus else "{:.1%}"
    text = form.format(row.value)
    if np.isfinite(row.low):
        text += f" [{form.format(row.low)}, {form.format(row.high)}]"
    return text


def _paper(row: Any, segment: str | None = None) -> str:
    return PAPER.get((row.panel, row.model, row.segment if segment is None else segment), "-")


def _concentration(page: Page, mean: pd.DataFrame, curves: pd.DataFrame) -> list[str]:
    lines = [
        "## Who listens, and to what",
        "",
        "| figure | paper | this source [95%] | users |",
        "|---|---|---|---:|",
    ]
    for row in _part(mean, "concentration").itertuples():
        lines.append(
            f"| {row.metric} of {row.model}, {row.segment} | {_paper(row)} | {_percent(row)} | {row.users:,} |"
        )
    for row in _part(mean, "podcasts before audiobooks").itertuples():
        words = "podcasts ever" if row.segment == "ever" else f"podcasts {row.segment}"
        lines.append(f"| {row.model} with {words} | {_paper(row)} | {_percent(row)} | {row.users:,} |")
    lines.append("")
    lines += _plot_concentration(page, curves)
    return lines


def _plot_concentration(page: Page, curves: pd.DataFrame) -> list[str]:
    panels = [
        name for name in ("concentration: users", "concentration: titles") if name in set(curves["panel"])
    ]
    if not panels:
        return []
    plt = _pyplot()
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4.2), layout="constrained", squeeze=False
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        users = panel.endswith("users")
        for number, (series, line) in enumerate(
            curves[curves["panel"] == panel].groupby("series", sort=False)
        ):
            axis.plot(
                line["x"], line["y"], label=series, linewidth=2, color=(_OWN, _OTHER, "#0f766e")[number]
            )
        axis.plot([0, 1], [0, 1], ":", color="black", linewidth=1, label="all alike")
        top = 0.25 if users else 0.2
        axis.axvline(top, color="black", linewidth=0.8, alpha=0.4)
        axis.annotate(f"{top:.0%}", (top, 0.02), xytext=(4, 0), textcoords="offset points", fontsize=9)
        axis.set_xlabel(f"{'users, most active' if users else 'titles, most streamed'} first (share)")
        axis.set_ylabel("listening that they account for (share)")
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1.01)
        axis.set_title("users" if users else "titles", fontsize=11)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9, loc="lower right", frameon=False)
    return _saved(page, figure, "concentration", "Lorenz curves of users and of titles")


def _similarity(page: Page, mean: pd.DataFrame, curves: pd.DataFrame) -> list[str]:
    part = _part(mean, "similarity")
    if part.empty:
        return []
    lines = [
        "## Who and what is alike",
        "",
        "Cosine of text vectors: of users, the mean of the podcasts that they streamed; of titles, their own, pairs of one "
        "language. The paper shows densities without figures; all three of its comparisons lie above random. *d* is the "
        "difference in standard deviations (Cohen); *more alike* is the chance that a joined pair is more alike than a "
        "random one, 50% if joining says nothing. *Titles with an edge* are pairs that this project's graph keeps.",
        "",
        "| pairs | joined [95%] | random [95%] | d [95%] | more alike [95%] | pairs | users |",
        "|---|---|---|---|---|---:|---:|",
    ]
    for name in part["model"].unique():
        own = part[part["model"] == name]
        cells = {(row.segment, row.metric): row for row in own.itertuples()}
        columns = [
            _number(cells["joined", "cosine"]),
            _number(cells["random", "cosine"]),
            _number(cells["joined against random", "Cohen's d"], 2),
            _percent(cells["joined against random", "chance of being more alike"]),
        ]
        pairs = cells["joined", "pairs"]
        number = f"{pairs.value:,.0f}" if np.isfinite(pairs.value) else "-"
        lines.append(f"| {name} | {' | '.join(columns)} | {number} | {pairs.users:,} |")
    lines.append("")
    panels = [panel for panel in curves["panel"].unique() if panel.startswith("similarity: ")]
    if panels:
        lines += _plot_similarity(page, curves, panels, part)
    return lines


def _number(row: Any, digits: int = 3) -> str:
    if not np.isfinite(row.value):
        return "-"
    spread = f" ± {row.spread:.{digits}f} over seeds" if np.isfinite(row.spread) else ""
    return f"{row.value:.{digits}f} [{row.low:.{digits}f}, {row.high:.{digits}f}]{spread}"


def _plot_similarity(page: Page, curves: pd.DataFrame, panels: list[str], part: pd.DataFrame) -> list[str]:
    plt = _pyplot()
    rows = (len(panels) + 1) // 2
    columns = min(len(panels), 2)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.5 * columns, 3.4 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.ravel()[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.ravel(), panels, strict=False):
        name = panel.removeprefix("similarity: ")
        for series, colour in (("random", _OTHER), ("joined", _OWN)):
            line = curves[(curves["panel"] == panel) & (curves["series"] == series)]
            axis.plot(line["x"], line["y"], color=colour, linewidth=1.8, label=f"{series} pairs")
            axis.fill_between(line["x"], line["y"], color=colour, alpha=0.18)
            value = part[
                (part["model"] == name) & (part["segment"] == series) & (part["metric"] == "cosine")
            ]["value"]
            axis.axvline(float(value.iloc[0]), color=colour, linewidth=1, linestyle="--")
        effect = part[(part["model"] == name) & (part["metric"] == "Cohen's d")]["value"].iloc[0]
        axis.set_title(f"{name} (d = {effect:.2f})", fontsize=10)
        axis.set_xlabel("cosine of text vectors (dashed: mean)")
        axis.set_ylabel("share of pairs")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9, frameon=False)
    return _saved(page, figure, "similarity", "Similarity of joined and of random pairs")


def _odds(page: Page, mean: pd.DataFrame) -> list[str]:
    part = _part(mean, "odds after a signal")
    part = part[part["metric"] == "change in odds"]
    if part.empty:
        return []
    segment = part["segment"].iloc[0]
    lines = [
        "## What follows a signal",
        "",
        "A row is a listener and a day from the listener's first stream on. Does a signal on that day, on any title, change "
        f"the odds of a {segment}? One logistic regression a signal. It says what goes together, not what causes what.",
        "",
        "| signal | paper | change in odds [95%] | listeners who gave it |",
        "|---|---|---|---:|",
    ]
    lines += [
        f"| {row.model} | {_paper(row, '')} | {_percent(row, plus=True)} | {row.users:,} |"
        for row in part.itertuples()
    ]
    lines.append("")
    shown = part[np.isfinite(part["value"])].iloc[::-1]
    if shown.empty:
        return lines
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(7.5, 1.3 + 0.6 * len(shown)), layout="constrained")
    for place, row in enumerate(shown.itertuples()):
        axis.plot([row.low, row.high], [place, place], color=_OWN, linewidth=2.5, alpha=0.6)
        axis.plot(
            row.value, place, "o", color=_OWN, markersize=8, label="this source [95%]" if not place else None
        )
        paper = _paper(row, "")
        if paper != "-":
            label = "paper" if not place else None
            axis.plot(float(paper.strip("+%")) / 100, place, "D", color=_OTHER, markersize=7, label=label)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(shown)), [row.model.replace("_", " ") for row in shown.itertuples()])
    axis.set_ylim(-0.6, len(shown) - 0.4)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:+.0%}")
    axis.set_xlabel(f"change in the odds of a {segment}")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(fontsize=9, frameon=False)
    return [*lines, *_saved(page, figure, "odds", "Change in the odds of a first stream after each signal")]


def _matrices(page: Page, mean: pd.DataFrame) -> list[str]:
    there = [panel for panel in _MATRICES if not _part(mean, panel).empty]
    if not there:
        return []
    lines = [
        "## What goes together",
        "",
        "Rows are given, columns are what else there is. Signals and genres: the share of the same user's *other* signals, "
        "or other streamed titles, so that a row sums to 100% (a signal counts once a user, title and kind). Content types: "
        "the share of the row's users who stream the column's type, too.",
        "",
    ]
    grids = {}
    for panel in there:
        part = _part(mean, panel)
        names = list(dict.fromkeys([*part["model"], *part["segment"]]))
        grid = part.pivot(index="model", columns="segment", values="value").reindex(
            index=names, columns=names
        )
        users = part.groupby("model")["users"].max()
        grids[panel] = grid
        lines += [
            f"| {panel} | " + " | ".join(names) + " | users |",
            "|---" * (len(names) + 1) + "|---:|",
        ]
        for name, row in grid.iterrows():
            cells = ["" if not np.isfinite(value) else f"{value:.1%}" for value in row]
            lines.append(f"| {name} | {' | '.join(cells)} | {int(users.get(name, 0)):,} |")
        lines.append("")
    return [*lines, *_plot_matrices(page, grids)]


def _plot_matrices(page: Page, grids: dict[str, pd.DataFrame]) -> list[str]:
    plt = _pyplot()
    # Genres are many and take a row of their own; a page is about ten inches wide.
    small = [panel for panel in grids if len(grids[panel]) <= 4]
    large = [panel for panel in grids if panel not in small]
    rows = [row for row in (small, large) if row]
    heights = [1.6 + 0.42 * max(len(grids[panel]) for panel in row) for row in rows]
    figure = plt.figure(figsize=(9.5, sum(heights)), layout="constrained")
    places = figure.add_gridspec(len(rows), 1, height_ratios=heights)
    axes = {}
    for number, row in enumerate(rows):
        inside = places[number].subgridspec(1, len(row))
        axes.update({panel: figure.add_subplot(inside[place]) for place, panel in enumerate(row)})
    for panel, axis in axes.items():
        grid = grids[panel]
        values = grid.to_numpy(float)
        axis.imshow(np.ma.masked_invalid(values), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
            colour = "white" if values[i, j] > 0.6 else "black"
            axis.text(j, i, f"{values[i, j]:.0%}", ha="center", va="center", fontsize=9, color=colour)
        names = [_short(str(name)) for name in grid.index]
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=9)
        axis.set_yticks(range(len(names)), names, fontsize=9)
        axis.set_xlabel("found beside it (share)", fontsize=9)
        axis.set_ylabel("given", fontsize=9)
        axis.set_title(panel, fontsize=10)
    return _saved(page, figure, "co_occurrence", "Co-occurrence of signals, genres and content types")


def _short(name: str, length: int = 18) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _saved(page: Page, figure: Any, part: str, words: str) -> list[str]:
    """Write a plot; the lines that show it on the page."""
    name = f"{page.name}_{part}.png"
    figure.savefig(page.out / name, dpi=110, metadata={"Software": None})
    _pyplot().close(figure)
    return [f"![{words}]({name})", ""]
