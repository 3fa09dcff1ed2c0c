"""Charts, drawn by matplotlib as SVG: no script, sharp at any size, in two palettes for light and dark pages."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Theme = Literal["light", "dark"]
HEADERS = {
    # A picture of its own: what matplotlib writes has style attributes, and nothing else may come in.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, max-age=30",
}
_INK = {"light": ("#23282f", "#b9c0c8"), "dark": ("#e3e6ea", "#4b535d")}
_COLOURS = {
    "light": ("#1f5fae", "#b4570f", "#5d6670", "#8a6fb0", "#2d7d5a", "#a33b5a"),
    "dark": ("#7fb2f0", "#eba05f", "#a8b0b9", "#b9a3dc", "#7cc7a4", "#ea8fa8"),
}
_MARKS = ("o", "s", "^", "v", "D", "P")
_LINES = ("-", "--", ":", "-.", "--", ":")
_MOVES = {"promote": "promoted", "rollback": "rolled back to", "found": "moved by hand"}
_drawing = threading.Lock()
"""matplotlib's settings are the process's own; one chart at a time."""


class Figure(Protocol):
    """A figure of one model on one date."""

    as_of: str
    model: str
    value: float
    low: float
    high: float


def quality(figures: Sequence[Any], moves: Mapping[str, str], theme: Theme) -> bytes:
    """The hit rate of each model over dates with 95% intervals; dates that became champion are marked.

    Args:
        moves: how a date became champion (an action of the history), by date.
    """
    keys = sorted({one.as_of for one in figures})
    place = {key: number for number, key in enumerate(keys)}
    models = list(dict.fromkeys(one.model for one in figures))

    def draw(axes: Axes, ink: str, colours: Sequence[str]) -> None:
        for number, model in enumerate(models):
            own = [one for one in figures if one.model == model]
            shift = (number - (len(models) - 1) / 2) * 0.08
            axes.errorbar(
                [place[one.as_of] + shift for one in own],
                [one.value for one in own],
                yerr=[
                    [max(one.value - one.low, 0) for one in own],
                    [max(one.high - one.value, 0) for one in own],
                ],
                label=model,
                color=colours[number % len(colours)],
                marker=_MARKS[number % len(_MARKS)],
                linestyle=_LINES[number % len(_LINES)],
                linewidth=1.4,
                markersize=4.5,
                elinewidth=1.0,
                capsize=2,
            )
        for key, action in moves.items():
            if key in place:
                axes.axvline(place[key], color=ink, linewidth=0.8, linestyle=(0, (1, 3)), zorder=0)
                axes.annotate(
                    _MOVES.get(action, action),
                    (place[key], 1.0),
                    xycoords=("data", "axes fraction"),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=ink,
                )
        every = max(1, -(-len(keys) // 10))
        axes.set_xticks(range(0, len(keys), every), keys[::every])
        axes.set_xlim(-0.5, max(len(keys) - 0.5, 0.5))
        axes.set_ylim(bottom=0)
        axes.set_ylabel("share of users with a hit")

    return _svg(draw, theme, (9.0, 3.4), len(models))


def segments(rows: Sequence[tuple[str, str, float, float, float]], theme: Theme) -> bytes:
    """A value with its interval by segment, side by side for each version.

    Args:
        rows: series, segment, value, low, high.
    """
    groups = list(dict.fromkeys(row[1] for row in rows))
    series = list(dict.fromkeys(row[0] for row in rows))

    def draw(axes: Axes, ink: str, colours: Sequence[str]) -> None:
        for number, name in enumerate(series):
            own = [row for row in rows if row[0] == name]
            shift = ((len(series) - 1) / 2 - number) * 0.2
            axes.errorbar(
                [row[2] for row in own],
                [len(groups) - 1 - groups.index(row[1]) + shift for row in own],
                xerr=[[max(row[2] - row[3], 0) for row in own], [max(row[4] - row[2], 0) for row in own]],
                label=name,
                color=colours[number % len(colours)],
                marker=_MARKS[number % len(_MARKS)],
                linestyle="none",
                markersize=5.5,
                elinewidth=1.4,
                capsize=3,
            )
        axes.set_yticks(range(len(groups)), groups[::-1])
        axes.set_ylim(-0.6, len(groups) - 0.4)
        axes.set_xlim(left=0)
        axes.set_xlabel("share of users with a hit")

    return _svg(draw, theme, (9.0, 0.8 + 0.62 * len(groups)), len(series))


def _svg(draw: Any, theme: Theme, size: tuple[float, float], labels: int) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    ink, faint = _INK[theme]
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "audiorec",
        "font.family": "sans-serif",
        "font.size": 9.5,
        "text.color": ink,
        "axes.edgecolor": faint,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": faint,
        "grid.alpha": 0.35,
        "axes.axisbelow": True,
    }
    target = io.BytesIO()
    with _drawing, matplotlib.rc_context(settings):
        figure = Canvas(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        axes = figure.subplots()
        axes.patch.set_alpha(0.0)
        draw(axes, ink, _COLOURS[theme])
        if labels:
            figure.legend(loc="outside lower center", ncols=min(labels, 4), frameon=False, fontsize=9)
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    return target.getvalue()
