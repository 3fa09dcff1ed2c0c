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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from audiorec.experiments.oracle import ORACLE
from audiorec.experiments.pages import less
from audiorec.experiments.scarcity import POPULAR
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
MISSING = "not measured yet"


@dataclass(frozen=True)
class Line:
    """A goal on one source; `reached` is None where there is no figure."""

    goal: str
    data: str
    figure: str = MISSING
    reached: bool | None = None


class Table:
    """The mean figures of one CSV of an experiment, by panel, model, segment and metric."""

    def __init__(self, path: Path, table: str) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["table"] == table]
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

    def interval(self, *key: str) -> tuple[float, float, float, int]:
        """Value, low, high, users."""
        row = self._rows[key]
        return float(row["value"]), float(row["low"]), float(row["high"]), int(row["users"])

    @property
    def models(self) -> set[str]:
        return {key[1] for key in self._rows}

    @property
    def rival(self) -> str:
        """The model that differences are taken to: the best rival over all users of the panel known."""
        start = less(HIT, "")
        return next(key[3].removeprefix(start) for key in self._rows if key[3].startswith(start))

    @property
    def personal_rival(self) -> str:
        """The best rival that is not the same list for everybody."""
        rivals = [
            model for model in self.models - {OURS, WITHOUT, ORACLE} if not model.startswith("popularity")
        ]
        return max(rivals, key=lambda model: self.value("known", model, "all", HIT))


def table(results: Path, source: str, name: str, panel: str | None = None) -> Table | None:
    """One experiment's figures, None where it has not been made (or was made before differences were in its CSV)."""
    path = results / source / f"{name}.csv"
    if not path.exists():
        return None
    found = Table(path, panel or name)
    return found if any(key[3].startswith(less(HIT, "")) for key in found._rows) else None


def goals(results: Path) -> Iterator[Line]:
    """All goals in their order."""
    for source in THREE:
        yield from _against_rivals(results, source)
    yield _cold(results)
    yield _ciao(results)
    for source in NAMES:
        yield _never_streamed(results, source)
    for source in THREE:
        yield from _scarcity(results, source)
    yield _oracle(results)
    yield from _speed(results)


def _difference(found: Table, segment: str, other: str, panel: str = "known") -> tuple[str, float, float]:
    value, low, high, users = found.interval(panel, OURS, segment, less(HIT, other))
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}] against {other}, {users:,} users", low, high


def _against_rivals(results: Path, source: str) -> Iterator[Line]:
    where = NAMES[source]
    ahead = {
        segment: f"{HIT} above the best rival's, interval without 0 (known, {segment})"
        for segment in ("all", "warm")
    }
    mrr, cover, tail = (
        "MRR not under that rival's (known, all)",
        "coverage three times that rival's, or 0.8 (known, all)",
        "tail HR@10 not under the best personalised rival's (known)",
    )
    found = table(results, source, "table2")
    if found is None:
        yield from (Line(goal, where) for goal in (*ahead.values(), mrr, cover, tail))
        return
    rival, personal = found.rival, found.personal_rival
    for segment, goal in ahead.items():
        said, low, _ = _difference(found, segment, rival)
        yield Line(goal, where, said, low > 0)
    ours, theirs = (found.value("known", model, "all", "MRR") for model in (OURS, rival))
    yield Line(mrr, where, f"{ours:.3f}, {rival} {theirs:.3f}", ours >= theirs)
    ours, theirs = (found.value("known", model, "all", COVERAGE) for model in (OURS, rival))
    yield Line(cover, where, f"{ours:.1%}, {rival} {theirs:.1%}", ours >= min(0.8, 3 * theirs))
    ours, theirs = (found.value("known", model, "tail", HIT) for model in (OURS, personal))
    yield Line(tail, where, f"{ours:.3f}, {personal} {theirs:.3f}", ours >= theirs)


def _cold(results: Path) -> Line:
    """Cold users of the three sources, weighed by their number; the intervals taken as those of normal means."""
    goal, where = "cold users pooled: at most 0.02 under the best rivals, with certainty (known)", "all three"
    tables = [table(results, source, "table2") for source in THREE]
    if None in tables:
        return Line(goal, where)
    parts = [one.interval("known", OURS, "cold", less(HIT, one.rival)) for one in tables if one is not None]
    users = sum(part[3] for part in parts)
    mean = sum(part[0] * part[3] for part in parts) / users
    half = math.sqrt(sum(((part[2] - part[1]) / 2 * part[3]) ** 2 for part in parts)) / users
    said = f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}], {users:,} users"
    return Line(goal, where, said, mean - half >= -0.02)


def _ciao(results: Path) -> Line:
    goal, where = f"{HIT} not under popularity (known, all)", NAMES["ciao"]
    found = table(results, "ciao", "table2")
    if found is None:
        return Line(goal, where)
    popular = {
        model: found.value("known", model, "all", HIT)
        for model in found.models
        if model.startswith("popularity")
    }
    best = max(popular, key=lambda model: popular[model])
    ours = found.value("known", OURS, "all", HIT)
    return Line(goal, where, f"{ours:.3f}, {best} {popular[best]:.3f}", ours >= popular[best])


def _never_streamed(results: Path, source: str) -> Line:
    goal = "titles never streamed are hit more often than by text alone (full)"
    found = table(results, source, "table2")
    if found is None:
        return Line(goal, NAMES[source])
    ours, text = (found.value("full", model, "never streamed", HIT) for model in (OURS, "LLM-KNN"))
    return Line(goal, NAMES[source], f"{ours:.3f}, text {text:.3f}", ours > text)


def _scarcity(results: Path, source: str) -> Iterator[Line]:
    for share in ("0.05", "0.01"):
        for other in (WITHOUT, POPULAR):
            goal = f"{float(share):.0%} of the pairs kept: ahead of {other} (known, all)"
            found = table(results, source, "scarcity", f"scarcity {share}")
            if found is None:
                yield Line(goal, NAMES[source])
                continue
            said, low, _ = _difference(found, "all", other)
            yield Line(goal, NAMES[source], said, low > 0)


def _oracle(results: Path) -> Line:
    goal, where = "80% of the oracle's HR@10 for warm users (known)", NAMES["simulation"]
    found = table(results, "simulation", "table2")
    if found is None:
        return Line(goal, where)
    share = found.value("known", OURS, "warm", HIT) / found.value("known", ORACLE, "warm", HIT)
    return Line(goal, where, f"{share:.0%}", share >= 0.8)


def _speed(results: Path) -> Iterator[Line]:
    path = results / "hgnn_training.csv"
    rows = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    for batch in ("256", "8192"):
        goal = f"HGNN training ten times PyG's loader at batch {batch}"
        ratios = {
            int(row["nodes"]): float(row["ratio_to_pyg"])
            for row in rows
            if row["batch"] == batch and row["variant"] == "ours" and row["ratio_to_pyg"]
        }
        if not ratios:
            yield Line(goal, "planted graph")
        for nodes, ratio in sorted(ratios.items()):
            yield Line(goal, f"planted graph, {nodes:,} nodes", f"{ratio:.1f} times", ratio >= 10)
    goal, path = "a whole standard run within 10 minutes", results / "movietweetings" / "run.costs.csv"
    if not path.exists():
        yield Line(goal, NAMES["movietweetings"])
        return
    with path.open(newline="", encoding="utf-8") as file:
        seconds = sum(float(row["seconds"]) for row in csv.DictReader(file))
    yield Line(goal, NAMES["movietweetings"], f"{seconds:,.0f} s, the sum of its tasks", seconds <= 600)


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
