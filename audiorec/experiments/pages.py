"""A table of an experiment as a page: Markdown, long-form CSV, a plot, and the fingerprints it rests on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from audiorec.experiments.cells import Experiment, Result
from audiorec.experiments.oracle import ORACLE
from audiorec.experiments.protocol import PANELS, SEGMENTS, TIERS, UNSTREAMED, segment_mask
from audiorec.experiments.publish import commit, processor
from audiorec.experiments.tables import OURS, SEEDLESS, WITHOUT, Table
from audiorec.settings import Evaluation
from models.metrics import (
    Interval,
    bootstrap_interval,
    hit_rate_at_k,
    paired_bootstrap_interval,
    reciprocal_rank,
)

COLUMNS = ("source", "table", "panel", "model", "segment", "metric", "value", "low", "high", "users", "seed")
"""Of the CSV; `seed` is a number, or `mean` for the mean over seeds with its interval over users."""
_TITLES = {
    "known": "titles streamed before the split",
    "full": "all titles published by the split",
    "new": "titles nobody streamed before the split",
}
_PARTS = {"tail": "tail", **{f"tier_{tier}": f"tier {tier}" for tier in TIERS}, UNSTREAMED: "never streamed"}
"""Slices of the protocol whose hit rates are shown, and their names as segments of the CSV."""


@dataclass(frozen=True)
class Figures:
    """Per-user values of every model of a page, averaged and by seed.

    `values[panel, metric]` float [users, models, seeds], NaN where a user does not count or a seed is missing.
    """

    models: tuple[str, ...]
    seeds: tuple[int, ...]
    segment: np.ndarray
    values: Mapping[tuple[str, str], np.ndarray]
    coverage: pd.DataFrame
    """panel, segment, model, seed, coverage."""
    metrics: tuple[str, str, str]
    """Names of the hit rate, the MRR and the tail hit rate."""
    coverage_metric: str
    """Name of the coverage, which is no mean over users."""
    sliced: Mapping[str, str]
    """Segment of the CSV by the metric that is a slice's hit rate."""
    titles: Mapping[str, int]
    """Titles that are ranked, by panel."""

    def coverage_of(self, panel: str, segment: str, model: str) -> np.ndarray:
        """A model's coverage by seed, [seeds]."""
        rows = self.coverage
        chosen = (rows["panel"] == panel) & (rows["segment"] == segment) & (rows["model"] == model)
        return rows[chosen].sort_values("seed")["coverage"].to_numpy()


def figures(results: Sequence[Result], settings: Evaluation, ablation: bool) -> Figures:
    """Line up the ranks of all cells by user."""
    frames, covers = [], []
    for result in results:
        ranks, cover = result.ranks, result.coverage
        if ablation:
            ranks = ranks[ranks["model"] == OURS].assign(model=result.cell.name)
            cover = cover[cover["model"] == OURS].assign(model=result.cell.name)
        frames.append(ranks.assign(seed=result.cell.seed))
        covers.append(cover.assign(seed=result.cell.seed))
    table, coverage = pd.concat(frames, ignore_index=True), pd.concat(covers, ignore_index=True)
    models, seeds = tuple(table["model"].unique()), tuple(sorted({result.cell.seed for result in results}))
    users = table.drop_duplicates("user_id").set_index("user_id")["segment"]
    hit = f"HR@{settings.hit_k}"
    metrics = (hit, "MRR", f"tail {hit}")
    sliced = {f"{name} {hit}": name for name in _PARTS.values()}
    sources = {hit: "rank", "MRR": "rank"} | {
        f"{name} {hit}": f"{part}_rank" for part, name in _PARTS.items()
    }
    values = {}
    row = users.index.get_indexer(table["user_id"])
    column = pd.Index(models).get_indexer(table["model"])
    layer = pd.Index(seeds).get_indexer(table["seed"])
    for panel in PANELS:
        chosen = (table["panel"] == panel).to_numpy()
        for metric, source in sources.items():
            ranks = table[source].to_numpy()[chosen]
            score = (
                reciprocal_rank(ranks, settings.depth)
                if metric == "MRR"
                else hit_rate_at_k(ranks, settings.hit_k)
            )
            found = np.full((len(users), len(models), len(seeds)), np.nan)
            found[row[chosen], column[chosen], layer[chosen]] = np.where(ranks < 0, np.nan, score)
            values[panel, metric] = found
    titles = next(found["titles"] for found in (r.manifest.facts for r in results) if "titles" in found)
    cover = f"coverage@{settings.depth}"
    return Figures(models, seeds, users.to_numpy(object), values, coverage, metrics, cover, sliced, titles)


def _mean_over_seeds(values: np.ndarray) -> np.ndarray:
    """[users, models, seeds] -> [users, models]; NaN where no seed has a value."""
    counted = ~np.isnan(values)
    number = counted.sum(axis=2)
    summed = np.where(counted, values, 0.0).sum(axis=2)
    return np.where(number > 0, summed / np.maximum(number, 1), np.nan)


def _mean(values: np.ndarray) -> float:
    """Mean of the users who count; 0 where none does, for an order of models that nobody was judged with."""
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else 0.0


def reference_model(found: Figures, ablation: bool) -> str:
    """What differences are taken to: the whole model in an ablation, else the rival with the best hit rate (known, all)."""
    if ablation:
        return OURS
    means = _mean_over_seeds(found.values["known", found.metrics[0]])
    inside = segment_mask(found.segment, "all")
    rates = {
        model: _mean(means[inside, number])
        for number, model in enumerate(found.models)
        if model not in (OURS, WITHOUT, ORACLE)
    }
    return max(rates, key=lambda model: rates[model])


def long_form(found: Figures, source: str, table: str, settings: Evaluation) -> pd.DataFrame:
    """The CSV's rows. Slices are segments here: all users, relevant titles of the slice (`tail`, `tier 1`, ...)."""
    rows = []
    for (panel, metric), values in found.values.items():
        part = found.sliced.get(metric)
        if panel == "new" and part is not None:
            continue  # All of it is the unpopular end.
        means = _mean_over_seeds(values)
        for segment in (part,) if part is not None else SEGMENTS:
            inside = segment_mask(found.segment, "all" if part is not None else segment)
            for number, model in enumerate(found.models):
                own = means[inside, number]
                own = own[~np.isnan(own)]
                interval = bootstrap_interval(own, draws=settings.bootstrap, seed=settings.seed)
                name = found.metrics[0] if part is not None else metric
                shared = (source, table, panel, model, segment, name)
                rows.append((*shared, interval.mean, interval.low, interval.high, interval.users, "mean"))
                for layer, seed in enumerate(found.seeds):
                    one = values[inside, number, layer]
                    one = one[~np.isnan(one)]
                    if len(one):
                        rows.append((*shared, one.mean(), np.nan, np.nan, len(one), str(seed)))
    for cover in found.coverage.itertuples():
        shared = (source, table, cover.panel, cover.model, cover.segment, found.coverage_metric)
        rows.append((*shared, cover.coverage, np.nan, np.nan, 0, str(cover.seed)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def less(metric: str, other: str) -> str:
    """Name of a metric's paired difference to another model, as a metric of the CSV."""
    return f"{metric} less {other}"


def differences(
    found: Figures, source: str, table: str, pairs: Sequence[tuple[str, str]], settings: Evaluation
) -> pd.DataFrame:
    """More rows of the CSV: hit rate of a model less another's, for pairs of models, each user's mean over seeds."""
    rows = []
    for panel in PANELS:
        means = _mean_over_seeds(found.values[panel, found.metrics[0]])
        for segment in SEGMENTS:
            inside = segment_mask(found.segment, segment) & _counted(found, panel)
            if not inside.any():
                continue
            for model, other in pairs:
                against = _paired(found, means[inside], model, other, settings)
                shared = (source, table, panel, model, segment, less(found.metrics[0], other))
                rows.append((*shared, against.mean, against.low, against.high, against.users, "mean"))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _paired(found: Figures, means: np.ndarray, model: str, other: str, settings: Evaluation) -> Interval:
    """A model less another one, from values [users, models]."""
    ours, theirs = (means[:, found.models.index(name)] for name in (model, other))
    return paired_bootstrap_interval(ours, theirs, draws=settings.bootstrap, seed=settings.seed)


def _cell(values: np.ndarray, inside: np.ndarray, number: int, seeds: bool) -> str:
    """Mean, and the standard deviation over seeds where there are several."""
    per_seed = [
        float(np.nanmean(values[inside, number, layer]))
        for layer in range(values.shape[2])
        if (~np.isnan(values[inside, number, layer])).any()
    ]
    if not per_seed:
        return "-"
    return with_spread(per_seed) if seeds else f"{np.mean(per_seed):.3f}"


def with_spread(per_seed: Sequence[float] | np.ndarray) -> str:
    """Mean, and the standard deviation over seeds where there are several."""
    spread = f" ± {np.std(per_seed, ddof=1):.3f}" if len(per_seed) > 1 else ""
    return f"{np.mean(per_seed):.3f}{spread}"


def markdown(found: Figures, table: Table, settings: Evaluation) -> list[str]:
    """One table a panel: rows are models, best first by the deciding segment's hit rate."""
    reference = reference_model(found, table.ablation)
    hit, mrr, tail = found.metrics
    lines = []
    for panel in PANELS:
        counts = {
            segment: int((segment_mask(found.segment, segment) & _counted(found, panel)).sum())
            for segment in SEGMENTS
        }
        small = [s for s in ("warm", "cold", "none") if counts[s] < settings.min_segment_users]
        lines += [
            f"## Panel {panel}: {_TITLES[panel]}",
            "",
            f"{found.titles[panel]:,} titles; {counts['all']:,} users ({counts['warm']:,} warm, {counts['cold']:,} cold; "
            f"{counts['none']:,} more without any history). "
            + (
                f"Segments under {settings.min_segment_users} users say little: {', '.join(small)}."
                if small
                else ""
            ),
            "",
            f"| model | {'' if table.segment == 'all' else f'{hit} {table.segment} | '}{hit} all | warm | cold | no history "
            f"| MRR {table.segment} | {tail} | {found.coverage_metric} | {hit} {table.segment} against {reference} [95%] |"
            + (" share of the oracle's |" if ORACLE in found.models else ""),
            "|---" * (9 + (table.segment != "all") + (ORACLE in found.models)) + "|",
        ]
        means = _mean_over_seeds(found.values[panel, hit])
        inside = segment_mask(found.segment, table.segment) & _counted(found, panel)
        order = range(len(found.models))
        if not table.ablation:
            order = sorted(order, key=lambda n: -_mean(means[inside, n]))  # type: ignore[assignment]
        for number in order:
            model = found.models[number]
            against = _paired(found, means[inside], model, reference, settings)
            difference = (
                f"{against.mean:+.3f} [{against.low:+.3f}, {against.high:+.3f}]" if inside.any() else "-"
            )
            every = segment_mask(found.segment, "all")
            cover = found.coverage_of(panel, table.segment, model).mean()
            by_segment = " | ".join(
                _cell(found.values[panel, hit], segment_mask(found.segment, segment), number, False)
                for segment in ("warm", "cold", "none")
            )
            deciding = (
                ""
                if table.segment == "all"
                else f"{_cell(found.values[panel, hit], inside, number, True)} | "
            )
            share = ""
            if ORACLE in found.models:
                ceiling = _mean(means[inside, found.models.index(ORACLE)])
                share = f" {_mean(means[inside, number]) / ceiling:.0%} |" if ceiling > 0 else " - |"
            lines.append(
                f"| {model} | {deciding}{_cell(found.values[panel, hit], every, number, True)} | {by_segment} "
                f"| {_cell(found.values[panel, mrr], inside, number, True)} "
                f"| {_cell(found.values[panel, tail], every, number, False)} | {cover:.1%} "
                f"| {difference} |{share}"
            )
        lines.append("")
    return lines + ([] if table.ablation else _by_tier(found))


def _by_tier(found: Figures) -> list[str]:
    """Hit rates by popularity of the relevant title, over the full panel."""
    every = segment_mask(found.segment, "all")
    metrics = [metric for metric in found.sliced if metric != found.metrics[2]]
    users = [int((every & ~np.isnan(found.values["full", m]).all(axis=(1, 2))).sum()) for m in metrics]
    heads = [f"{found.sliced[m]} ({number:,} users)" for m, number in zip(metrics, users, strict=True)]
    return [
        f"## The long tail: {found.metrics[0]} by popularity of the relevant title, panel full",
        "",
        "Titles in order of their streams in the window, cut into tiers of a fifth of the streams each: 1 the most popular. "
        "Those never streamed are part of tier 5, and shown apart. Lists are over the whole panel; users with no relevant title "
        "in a tier are left out of it.",
        "",
        "| model | " + " | ".join(heads) + " |",
        "|---" * (len(metrics) + 1) + "|",
        *(
            f"| {model} | "
            + " | ".join(_cell(found.values["full", metric], every, number, False) for metric in metrics)
            + " |"
            for number, model in enumerate(found.models)
        ),
        "",
    ]


def _counted(found: Figures, panel: str) -> np.ndarray:
    """Users with a relevant title in the panel."""
    return ~np.isnan(found.values[panel, found.metrics[0]]).all(axis=(1, 2))


def plot(found: Figures, table: Table, settings: Evaluation, target: Path) -> None:
    """Hit rate of the deciding segment with 95% intervals, a dot a seed; one panel of titles each side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    hit = found.metrics[0]
    height = 1.2 + 0.32 * len(found.models)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, height), sharey=True, layout="constrained")
    first = _mean_over_seeds(found.values["known", hit])
    inside = segment_mask(found.segment, table.segment)
    order = sorted(
        range(len(found.models)),
        key=lambda n: _mean(first[inside, n]),
    )
    for axis, panel in zip(axes, PANELS, strict=True):
        values = found.values[panel, hit]
        means = _mean_over_seeds(values)
        for place, number in enumerate(order):
            own = means[inside, number]
            own = own[~np.isnan(own)]
            if not len(own):
                continue
            interval = bootstrap_interval(own, draws=settings.bootstrap, seed=settings.seed)
            colour = "#c2410c" if found.models[number] in (OURS, WITHOUT) else "#475569"
            axis.plot([interval.low, interval.high], [place, place], color=colour, linewidth=2, alpha=0.6)
            axis.plot(interval.mean, place, "o", color=colour, markersize=7)
            for layer in range(values.shape[2]):
                one = values[inside, number, layer]
                if (~np.isnan(one)).any() and values.shape[2] > 1:
                    axis.plot(np.nanmean(one), place, "|", color="black", markersize=9)
        axis.set_title(_TITLES[panel], fontsize=10)
        axis.set_xlabel(f"{hit}, {table.segment} users (share)\nline: 95% over users; |: a seed", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(order)), [found.models[number] for number in order], fontsize=9)
    figure.savefig(target, dpi=110, metadata={"Software": None})
    plt.close(figure)


@dataclass(frozen=True)
class Page:
    """Where a page goes and what it says of its making."""

    experiment: Experiment
    name: str
    table: Table
    out: Path
    command: str
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Cells that the source allows no figures of, and why."""

    @property
    def source(self) -> str:
        return self.out.name


def write(page: Page, results: Sequence[Result]) -> Path:
    """Write NAME.md, .csv, .png and .cells.json; returns the Markdown page."""
    settings = page.experiment.settings(results[0].cell)
    found = figures(results, settings.evaluation, page.table.ablation)
    page.out.mkdir(parents=True, exist_ok=True)
    plot(found, page.table, settings.evaluation, page.out / f"{page.name}.png")
    others = [model for model in found.models if model != OURS]
    pairs = [(other, OURS) if page.table.ablation else (OURS, other) for other in others]
    rows = pd.concat(
        [
            long_form(found, page.source, page.name, settings.evaluation),
            differences(found, page.source, page.name, pairs, settings.evaluation),
        ],
        ignore_index=True,
    )
    return finish_judged(page, results, rows, markdown(found, page.table, settings.evaluation), found.seeds)


def finish_judged(
    page: Page, results: Sequence[Result], rows: pd.DataFrame, body: Sequence[str], seeds: Sequence[int]
) -> Path:
    """`finish` for pages that judge models on a hold-out: how it was done, and the plot after the tables."""
    settings = page.experiment.settings(results[0].cell)
    window = settings.time.window_days
    spread = "One seed" if len(seeds) == 1 else f"± is the standard deviation over {len(seeds)} seeds"
    if len(seeds) > 1 and any(result.cell.name == SEEDLESS for result in results):
        spread += " (no seed changes the models that have none)"
    about = (
        f"Hold-out: {settings.time.holdout_days} days up to {page.experiment.as_of}; window: "
        f"{window if window == 'all' else f'{window} days'}. Exact ranking over the whole catalogue; titles once streamed "
        f"are left out. {spread}; intervals are bootstrapped over users, paired where two models are compared."
    )
    bounds = {"bounds": f"at most {settings.hgnn.edges_per_epoch} supervised edges an epoch"}
    return finish(page, results, rows, about, [*body, f"![Hit rates]({page.name}.png)"], seeds, bounds)


def finish(
    page: Page,
    results: Sequence[Result],
    rows: pd.DataFrame,
    about: str,
    body: Sequence[str],
    seeds: Sequence[int],
    facts: Mapping[str, str],
) -> Path:
    """What all pages share: the CSV, the fingerprints, the head and the foot around `body`.

    Args:
        about: how it was made, after the table's own note.
        facts: more lines of the foot, by name.
    """
    out, name = page.out, page.name
    rows.to_csv(out / f"{name}.csv", index=False, float_format="%.5f")
    record = {
        "source": page.source,
        "as_of": page.experiment.as_of.isoformat(),
        "seeds": list(seeds),
        "cells": {result.cell.label: result.manifest.fingerprint for result in results},
    }
    (out / f"{name}.cells.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    lines = [
        f"# {page.table.title} ({page.source})",
        "",
        f"{page.table.note} {about}",
        "",
        *([f"**This source lacks**: {'; '.join(results[0].lacks)}.", ""] if results[0].lacks else []),
        *(f"**Left out**: {cell}: {why}.\n" for cell, why in page.left_out.items()),
        *body,
        "",
        f"All figures in long form: [{name}.csv]({name}.csv). The cells behind them: [{name}.cells.json]({name}.cells.json).",
        "",
        *_footer(facts, results, page.command, seeds),
    ]
    target = out / f"{name}.md"
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return target


def _footer(
    facts: Mapping[str, str], results: Sequence[Result], command: str, seeds: Sequence[int]
) -> list[str]:
    seconds: dict[str, list[float]] = {}
    peak: dict[str, float] = {}
    seen = set()
    for result in results:
        for task, cost in result.cost.items():
            key = (task, cost["seconds"], cost["peak_mb"])
            if key not in seen:
                seen.add(key)
                seconds.setdefault(task, []).append(cost["seconds"])
                peak[task] = max(peak.get(task, 0.0), cost["peak_mb"])
    total = sum(sum(values) for values in seconds.values())
    return [
        "| | |",
        "|---|---|",
        f"| command | `{command}` |",
        f"| code | commit `{commit()}` |",
        f"| seeds | {', '.join(map(str, seeds))} |",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        f"| machine | {processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, "
        f"Python {platform.python_version()} |",
        f"| work | {total / 60:.0f} minutes in {len(seen)} task(s) |",
        "",
        "| task | runs | seconds a run | peak MiB |",
        "|---|---:|---:|---:|",
        *(
            f"| {task} | {len(values)} | {np.mean(values):.0f} | {peak[task]:.0f} |"
            for task, values in seconds.items()
        ),
    ]
