"""A run's figures for people: a Markdown table and a plot, from the long form of `protocol.summarise`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from audiorec.experiments.protocol import HoldOut
from audiorec.settings import Evaluation

_COLOURS = ("#3366aa", "#88aadd", "#999999", "#555555")


def metrics_table(
    metrics: pd.DataFrame, hold_out: HoldOut, as_of: str, window: int, settings: Evaluation
) -> str:
    """Markdown: one table a panel, models as rows, HR@10 with its interval by segment, MRR, tail, coverage."""
    hit, tail, coverage = f"HR@{settings.hit_k}", f"tail HR@{settings.hit_k}", f"coverage@{settings.depth}"
    lines = [
        f"Hold-out of {as_of}: exact ranking over the whole catalogue; recent popularity counts {window} days.",
        "",
    ]
    for panel in ("known", "full"):
        table = metrics[metrics["panel"] == panel]
        users = {
            segment: int(rows["users"].iloc[0]) if len(rows) else 0
            for segment in ("all", "warm", "cold", "none")
            for rows in [table[(table["segment"] == segment) & (table["metric"] == hit)]]
        }
        lines += [
            f"Panel {panel}: {hold_out.titles[panel]} titles; {users['all']} users "
            f"({users['warm']} warm, {users['cold']} cold); {users['none']} more without any history.",
            "",
            f"| model | {hit} all [95%] | warm | cold | no history | MRR | {tail} | {coverage} | {hit} against recent popularity [95%] |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for model in table["model"].unique():
            cells = {(row.segment, row.metric): row for row in table[table["model"] == model].itertuples()}
            every = cells["all", hit]
            lines.append(
                f"| {model} | {every.value:.3f} [{every.low:.3f}, {every.high:.3f}] "
                + "".join(
                    f"| {_mark(cells[segment, hit], settings)} " for segment in ("warm", "cold", "none")
                )
                + f"| {cells['all', 'MRR'].value:.3f} | {cells['all', tail].value:.3f} | {cells['all', coverage].value:.1%} "
                f"| {every.difference:+.3f} [{every.difference_low:+.3f}, {every.difference_high:+.3f}] |"
            )
        lines.append("")
    lines.append(f"Segments under {settings.min_segment_users} users are marked * and never judged.")
    return "\n".join(lines) + "\n"


def _mark(row: object, settings: Evaluation) -> str:
    value, users = float(row.value), int(row.users)  # type: ignore[attr-defined]
    if np.isnan(value):
        return "-"
    return f"{value:.3f}" + ("*" if users < settings.min_segment_users else "")


def plot_metrics(metrics: pd.DataFrame, settings: Evaluation, target: Path) -> None:
    """HR@10 with 95% intervals by panel and segment, one bar a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    hit = f"HR@{settings.hit_k}"
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    for axis, panel in zip(axes, ("known", "full"), strict=True):
        table = metrics[(metrics["panel"] == panel) & (metrics["metric"] == hit)]
        models = list(table["model"].unique())
        segments = ("all", "warm", "cold")
        width = 0.8 / max(len(models), 1)
        for number, model in enumerate(models):
            rows = table[table["model"] == model].set_index("segment").reindex(segments)
            value = rows["value"].to_numpy(float)
            error = np.nan_to_num(np.stack([value - rows["low"], rows["high"] - value]).astype(float)).clip(
                min=0
            )
            place = np.arange(len(segments)) + (number - (len(models) - 1) / 2) * width
            axis.bar(
                place,
                np.nan_to_num(value),
                width,
                yerr=error,
                label=model,
                color=_COLOURS[number % len(_COLOURS)],
                capsize=2,
            )
        axis.set_xticks(range(len(segments)), segments)
        axis.set_title({"known": "titles streamed before the split", "full": "whole catalogue"}[panel])
        axis.set_xlabel("users")
    axes[0].set_ylabel(f"{hit} (share of users)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.savefig(target, dpi=110, metadata={"Software": None})
    plt.close(figure)
