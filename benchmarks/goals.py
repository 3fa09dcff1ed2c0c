"""Every goal of the experiments beside its figure, read from the CSVs under docs/results/.

    python -m benchmarks.goals            # writes docs/results/goals.md
    python -m benchmarks.goals --check    # exit status 1 if the page says something else

Nothing is computed but shares, differences of means and the pooling of cold users; every figure is on another page.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from audiorec.chain import CHAIN
from audiorec.experiments.oracle import ORACLE
from audiorec.experiments.pages import less
from audiorec.experiments.tables import OURS, WITHOUT

RESULTS = Path(__file__).parents[1] / "docs" / "results"
NAMES = {
    "movietweetings": "MovieTweetings",
    "online_retail": "Online Retail",
    "simulation": "Simulation",
    "ciao": "Ciao",
}
THREE = ("movietweetings", "online_retail", "simulation")
"""Sources on which one configuration is to be ahead of every rival."""
HIT, COVERAGE = "HR@10", "coverage@100"
POPULARITY = "popularity"
"""How the names of models start that have one list for everybody."""
MISSING = "not measured yet"


@dataclass(frozen=True)
class Line:
    """A goal on one source; `reached` is None where there is no figure."""

    goal: str
    data: str
    figure: str = MISSING
    reached: bool | None = None


class Table:
    """The mean figures of one CSV of an experiment, by panel, model, segment and metric. Empty ones are left out."""

    def __init__(self, path: Path, table: str) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["table"] == table and row["value"]]
        self._by_seed: dict[tuple[str, ...], list[float]] = {}
        self._rows: dict[tuple[str, ...], dict[str, str]] = {}
        for row in rows:
            key = (row["panel"], row["model"], row["segment"], row["metric"])
            if row["seed"] == "mean":
                self._rows[key] = row
            else:
                self._by_seed.setdefault(key, []).append(float(row["value"]))

    def value(self, *key: str) -> float:
        """A figure; the mean over seeds where the CSV has none over users (coverage). Raises KeyError."""
        if key in self._rows:
            return float(self._rows[key]["value"])
        own = self._by_seed[key]
        return sum(own) / len(own)

    def less(self, other: str, segment: str) -> tuple[float, float, float, int]:
        """2T-HGNN's hit rate less another model's, known titles: value, low, high, users. Raises KeyError."""
        row = self._rows["known", OURS, segment, less(HIT, other)]
        return float(row["value"]), float(row["low"]), float(row["high"]), int(row["users"])

    def best(self, segment: str, popular: bool | None = None) -> str:
        """The rival with the best hit rate on known titles: of all, of popularities, or of the personalised ones.

        Raises KeyError.
        """
        rates = {
            key[1]: float(row["value"])
            for key, row in self._rows.items()
            if key[0] == "known"
            and key[2:] == (segment, HIT)
            and key[1] not in (OURS, WITHOUT, ORACLE)
            and popular in (None, key[1].startswith(POPULARITY))
        }
        if not rates:
            raise KeyError(segment)
        return max(rates, key=lambda model: rates[model])


Read = Callable[[], Table]
Judged = tuple[str, bool]
"""A figure in words, and whether it reaches the goal."""


def line(goal: str, data: str, judge: Callable[..., Judged], *given: Any) -> Line:
    """A goal with its figure; without one where a page or a figure that it needs is not there."""
    try:
        return Line(goal, data, *judge(*given))
    except (FileNotFoundError, KeyError):
        return Line(goal, data)


def goals(results: Path) -> Iterator[Line]:
    """All goals in their order."""

    def table(source: str, name: str = "table2", part: str | None = None) -> Read:
        return partial(Table, results / source / f"{name}.csv", part or name)

    for source in THREE:
        where = NAMES[source]
        for segment in ("all", "warm"):
            yield line(
                f"{HIT} above the best rival's, interval without 0 (known, {segment})",
                where,
                _ahead,
                table(source),
                segment,
            )
        yield line("MRR not under that rival's (known, all)", where, _mrr, table(source))
        yield line("coverage three times that rival's, or 0.8 (known, all)", where, _coverage, table(source))
        yield line(f"tail {HIT} not under the best personalised rival's (known)", where, _tail, table(source))
    yield line(
        "cold users pooled: at most 0.02 under the best rivals, with certainty (known)",
        "all three",
        _cold,
        [table(source) for source in THREE],
    )
    yield line(
        f"{HIT} not under popularity (known, all)",
        NAMES["ciao"],
        _not_under_popularity,
        table("ciao"),
    )
    for source, where in NAMES.items():
        yield line(
            "titles never streamed are hit more often than by text alone (full)",
            where,
            _never_streamed,
            table(source),
        )
    for source in THREE:
        for share in ("0.05", "0.01"):
            for other, judge in ((WITHOUT, _ahead_of_2t), (POPULARITY, _ahead_of_popularity)):
                yield line(
                    f"{float(share):.0%} of the pairs kept: ahead of {other} (known, all)",
                    NAMES[source],
                    judge,
                    table(source, "scarcity", f"scarcity {share}"),
                )
    yield line(
        "80% of the oracle's HR@10 for warm users (known)",
        NAMES["simulation"],
        _share_of_the_oracle,
        table("simulation"),
    )
    for batch in ("256", "8192"):
        goal = f"HGNN training ten times PyG's loader at batch {batch}"
        ratios = _ratios(results / "hgnn_training.csv", batch)
        if not ratios:
            yield Line(goal, "planted graph")
        for nodes, ratio in sorted(ratios.items()):
            yield Line(goal, f"planted graph, {nodes:,} nodes", f"{ratio:.1f} times", ratio >= 10)
    yield line(
        "a whole standard run within 10 minutes",
        NAMES["movietweetings"],
        _run,
        results / "movietweetings" / "run.costs.csv",
    )


def _ahead(read: Read, segment: str) -> Judged:
    found = read()
    return _ahead_of(found, segment, found.best(segment))


def _ahead_of_popularity(read: Read) -> Judged:
    found = read()
    return _ahead_of(found, "all", found.best("all", popular=True))


def _ahead_of_2t(read: Read) -> Judged:
    return _ahead_of(read(), "all", WITHOUT)


def _ahead_of(found: Table, segment: str, other: str) -> Judged:
    value, low, high, users = found.less(other, segment)
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}] against {other}, {users:,} users", low > 0


def _mrr(read: Read) -> Judged:
    found = read()
    rival = found.best("all")
    ours, theirs = (found.value("known", model, "all", "MRR") for model in (OURS, rival))
    return f"{ours:.3f}, {rival} {theirs:.3f}", ours >= theirs


def _coverage(read: Read) -> Judged:
    found = read()
    rival = found.best("all")
    ours, theirs = (found.value("known", model, "all", COVERAGE) for model in (OURS, rival))
    return f"{ours:.1%}, {rival} {theirs:.1%}", ours >= min(0.8, 3 * theirs)


def _tail(read: Read) -> Judged:
    found = read()
    rival = found.best("all", popular=False)
    ours, theirs = (found.value("known", model, "tail", HIT) for model in (OURS, rival))
    return f"{ours:.3f}, {rival} {theirs:.3f}", ours >= theirs


def _cold(reads: Sequence[Read]) -> Judged:
    """Weighed by the number of users; the intervals taken as those of normal means."""
    parts = [found.less(found.best("cold"), "cold") for found in (read() for read in reads)]
    users = sum(part[3] for part in parts)
    mean = sum(part[0] * part[3] for part in parts) / users
    half = math.sqrt(sum(((part[2] - part[1]) / 2 * part[3]) ** 2 for part in parts)) / users
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}], {users:,} users", mean - half >= -0.02


def _not_under_popularity(read: Read) -> Judged:
    found = read()
    rival = found.best("all", popular=True)
    ours, theirs = (found.value("known", model, "all", HIT) for model in (OURS, rival))
    return f"{ours:.3f}, {rival} {theirs:.3f}", ours >= theirs


def _never_streamed(read: Read) -> Judged:
    found = read()
    ours, text = (found.value("full", model, "never streamed", HIT) for model in (OURS, "LLM-KNN"))
    return f"{ours:.3f}, text {text:.3f}", ours > text


def _share_of_the_oracle(read: Read) -> Judged:
    found = read()
    share = found.value("known", OURS, "warm", HIT) / found.value("known", ORACLE, "warm", HIT)
    return f"{share:.0%}", share >= 0.8


def _ratios(path: Path, batch: str) -> dict[int, float]:
    """How many times PyG's edges a second, by number of nodes."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            int(row["nodes"]): float(row["ratio_to_pyg"])
            for row in csv.DictReader(file)
            if row["batch"] == batch and row["variant"] == "ours" and row["ratio_to_pyg"]
        }


def _run(path: Path) -> Judged:
    with path.open(newline="", encoding="utf-8") as file:
        seconds = {row["task"]: float(row["seconds"]) for row in csv.DictReader(file) if row["seconds"]}
    total = sum(seconds[task] for task in CHAIN)  # a task without a figure is a run without one
    return f"{total:,.0f} s, the sum of its tasks", total <= 600


def page(lines: Sequence[Line]) -> str:
    """The goals as Markdown."""
    reached = {True: "yes", False: "**no**", None: "-"}
    counts = {
        word: sum(line.reached is state for line in lines)
        for word, state in (("reached", True), ("missed", False), (MISSING, None))
    }
    return "\n".join(
        [
            "# Goals",
            "",
            "What was asked of the experiments, and what came out. Written by `python -m benchmarks.goals` from the CSVs of "
            "the pages beside it: table 2, scarcity, a run, HGNN training. Differences are paired over users, the mean over "
            "seeds, with 95% intervals.",
            "",
            ", ".join(f"{number} {word}" for word, number in counts.items()) + ".",
            "",
            "| goal | data | figure | reached |",
            "|---|---|---|---|",
            *(f"| {line.goal} | {line.data} | {line.figure} | {reached[line.reached]} |" for line in lines),
            "",
        ]
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the CSVs and of goals.md")
    parser.add_argument("--check", action="store_true", help="compare with the page instead of writing it")
    options = parser.parse_args()
    target, text = options.results / "goals.md", page(list(goals(options.results)))
    if options.check:
        current = target.exists() and target.read_text(encoding="utf-8") == text
        print(f"{target}: {'current' if current else 'stale'}")
        return 0 if current else 1
    target.write_text(text, encoding="utf-8")
    print(f"written: {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
