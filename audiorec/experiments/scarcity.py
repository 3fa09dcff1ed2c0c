"""The page of the scarcity experiment: every model against the share of audiobook pairs kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from audiorec.experiments.cells import Result
from audiorec.experiments.pages import (
    COLUMNS,
    Figures,
    Page,
    differences,
    figures,
    finish_judged,
    less,
    long_form,
    with_spread,
)
from audiorec.experiments.protocol import segment_mask
from audiorec.experiments.tables import OURS, SHARES, WITHOUT, share_name

POPULAR = "popularity, recent"
AGAINST = (WITHOUT, POPULAR, "popularity, whole window")
"""What 2T-HGNN is to be ahead of when little is known."""


def write(page: Page, results: Sequence[Result]) -> Path:
    """Write the page, its CSV (the share is part of the table's name there) and its plot."""
    settings = page.experiment.settings(results[0].cell).evaluation
    by_share = {
        share: figures([one for one in results if one.cell.name == share_name(share)], settings, False)
        for share in SHARES
    }
    page.out.mkdir(parents=True, exist_ok=True)
    tables = []
    for share, found in by_share.items():
        name = f"{page.name} {share:g}"
        tables.append(long_form(found, page.source, name, settings))
        pairs = [(OURS, other) for other in AGAINST]
        tables.append(differences(found, page.source, name, pairs, settings))
    rows = pd.concat(tables, ignore_index=True)
    _plot(by_share, page.out / f"{page.name}.png")
    seeds = by_share[SHARES[0]].seeds
    return finish_judged(page, results, rows[list(COLUMNS)], _markdown(by_share, rows), seeds)


def rate(found: Figures, panel: str, metric: str, model: str) -> np.ndarray:
    """The figure of all users by seed, [seeds]: a mean over users, or their coverage of the catalogue."""
    if metric == found.coverage_metric:
        return found.coverage_of(panel, "all", model)
    inside = segment_mask(found.segment, "all")
    return np.asarray(np.nanmean(found.values[panel, metric][inside, found.models.index(model)], axis=0))


def _difference(rows: pd.DataFrame, found: Figures, panel: str, other: str, share: float) -> str:
    """2T-HGNN less another model among the CSV's rows, and in how many seeds it is ahead.

    The interval is over users, each one's mean over seeds, so it says nothing of which pairs a seed happened to keep.
    """
    own = rows[
        (rows["panel"] == panel)
        & (rows["segment"] == "all")
        & rows["table"].str.endswith(f" {share:g}")
        & rows["metric"].str.endswith(less("", other))
    ].iloc[0]
    hit = found.metrics[0]
    ahead = rate(found, panel, hit, OURS) > rate(found, panel, hit, other)
    counted = f", {ahead.sum()} of {len(ahead)}" if len(ahead) > 1 else ""
    return f"{own['value']:+.3f} [{own['low']:+.3f}, {own['high']:+.3f}]{counted}"


def _markdown(by_share: Mapping[float, Figures], rows: pd.DataFrame) -> list[str]:
    lines = []
    some = by_share[SHARES[0]]
    for panel in ("known", "full"):
        for metric in (*some.metrics, some.coverage_metric):
            lines += [
                f"## {metric}, panel {panel}",
                "",
                "| model | " + " | ".join(share_name(share) for share in SHARES) + " |",
                "|---|" + "---|" * len(SHARES),
            ]
            for model in some.models:
                cells = [rate(by_share[share], panel, metric, model) for share in SHARES]
                lines.append(f"| {model} | " + " | ".join(with_spread(one) for one in cells) + " |")
            lines.append("")
        lines += [
            f"## 2T-HGNN less others, {some.metrics[0]}, panel {panel} [95% over users, mean over seeds]"
            + (", seeds in which it is ahead" if len(some.seeds) > 1 else ""),
            "",
            "| against | " + " | ".join(share_name(share) for share in SHARES) + " |",
            "|---|" + "---|" * len(SHARES),
        ]
        for other in AGAINST:
            lines.append(
                f"| {other} | "
                + " | ".join(_difference(rows, by_share[share], panel, other, share) for share in SHARES)
                + " |"
            )
        lines.append("")
    return lines


def _plot(by_share: Mapping[float, Figures], target: Path) -> None:
    """Four figures against the share kept, a line a model, a small dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    some = by_share[SHARES[0]]
    hit, _, tail = some.metrics
    known, full = "titles streamed before the split", "all published titles"
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharex=True, layout="constrained")
    drawn = (
        (axes[0, 0], "known", hit, known),
        (axes[0, 1], "full", hit, full),
        (axes[1, 0], "known", tail, known),
        (axes[1, 1], "known", some.coverage_metric, known),
    )
    for axis, panel, metric, title in drawn:
        for number, model in enumerate(some.models):
            rates = [rate(by_share[share], panel, metric, model) for share in SHARES]
            bold = model in (OURS, WITHOUT, POPULAR)
            [line] = axis.plot(
                SHARES,
                [one.mean() for one in rates],
                marker="o",
                label=model,
                linewidth=2.4 if bold else 1.1,
                color=f"C{number}",
                alpha=1.0 if bold else 0.6,
            )
            for share, one in zip(SHARES, rates, strict=True):
                axis.plot([share] * len(one), one, ".", color=line.get_color(), alpha=0.4, markersize=4)
        axis.set_xscale("log")
        axis.set_xticks(SHARES, [f"{share:.0%}" for share in SHARES])
        axis.minorticks_off()
        axis.set_title(title, fontsize=10)
        unit = "share of the titles" if metric == some.coverage_metric else "share of users"
        axis.set_ylabel(f"{metric} ({unit})")
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("share of audiobook pairs kept (log scale)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(target, dpi=110, metadata={"Software": None})
    plt.close(figure)
