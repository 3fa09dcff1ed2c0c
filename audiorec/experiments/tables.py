"""Which cells each table of the paper is made of, and which models it shows.

Tables 2 and 3 share their cells: every model judged on warm and on cold users. Table 1 varies one thing at a
time; `beyond` goes on where the paper stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from audiorec.errors import BadSettings
from audiorec.experiments.cells import Cell, seeded

OURS, WITHOUT = "2T-HGNN", "2T"


@dataclass(frozen=True)
class Table:
    """One page: its title, the segment that decides, the cells for some seeds, and what readers must know."""

    title: str
    segment: str
    cells: Callable[[Sequence[int]], list[Cell]]
    note: str
    seeds: int
    """Seeds that make it up where nobody says otherwise."""
    ablation: bool = False
    """Rows are variations of one model, and differences are to it; else rows are models."""
    ceiling: bool = False
    """The oracle joins in where the source is a simulation."""

    def all_cells(self, seeds: Sequence[int], simulated: bool, rivals: Sequence[str] = ()) -> list[Cell]:
        """The cells on a source; the oracle's, which no seed changes, last.

        rivals: the only ones that are wanted; empty for all.

        Raises:
            BadSettings: one of them does not exist.
        """
        unknown = sorted({*rivals} - {*_SEEDED, *_SEEDLESS})
        if unknown:
            raise BadSettings(
                f"rivals.models names {unknown}, which do not exist; known: {', '.join(_SEEDLESS + _SEEDED)}"
            )
        found = [of for cell in self.cells(seeds) if (of := _of_rivals(cell, rivals)) is not None]
        oracle = [seeded("default", seeds[0], "oracle")] if self.ceiling and simulated else []
        return found + oracle


SEEDLESS = "seedless"
"""Name of the cell of the rivals that no seed changes."""

_SEEDLESS = ("LLM-KNN", "item-kNN", "item-kNN x recent popularity", "EASE")
_SEEDED = ("HGNN", "HGNN-w-users", "ALS", "BPR", "LightGCN", "boosted trees")
"""Rivals by whether a seed changes them; of HGNN it is the seed of the embeddings."""


def _everybody(seeds: Sequence[int]) -> list[Cell]:
    """Every model under every seed; rivals that no seed changes are fitted once."""
    found = [
        cell
        for seed in seeds
        for cell in (seeded("default", seed, "evaluate"), _rivals("default", seed, _SEEDED))
    ]
    return [*found, _rivals(SEEDLESS, seeds[0], _SEEDLESS)]


def _rivals(name: str, seed: int, models: Sequence[str]) -> Cell:
    return seeded(name, seed, "rivals", {"rivals": {"models": list(models)}})


def _of_rivals(cell: Cell, wanted: Sequence[str]) -> Cell | None:
    """A cell of rivals with the wanted ones of its own, None if there is none among them; any other as it is."""
    if cell.task != "rivals" or not wanted:
        return cell
    own = cell.overrides["rivals"]
    models = [name for name in own["models"] if name in wanted]
    if not models:
        return None
    return replace(cell, overrides={**cell.overrides, "rivals": {**own, "models": models}})


_ONE = {"models": ["2T-HGNN"]}

ABLATIONS: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "A no balanced sampler": {"hgnn": {"balanced": False}},
    "B no weak signals": {"two_tower": {"weak_signals": False}},
    "C no podcast-podcast edges": {"graph": {"relations": ["audiobook_audiobook", "audiobook_podcast"]}},
    "D no audiobook-audiobook edges": {"graph": {"relations": ["audiobook_podcast", "podcast_podcast"]}},
    "E audiobook-audiobook edges only": {"graph": {"relations": ["audiobook_audiobook"]}},
    "F podcast-podcast edges only": {"graph": {"relations": ["podcast_podcast"]}},
}
BEYOND: Mapping[str, Mapping[str, Mapping[str, object]]] = {
    "no text": {"text": {"model": "builtin:random"}},
    "no music": {"two_tower": {"music": False}},
    "no demographics": {"two_tower": {"demographics": False}},
    "no affinities": {"two_tower": {"affinities": False}},
    "no popularity, and so no affinities": {"two_tower": {"popularity_prior": False}},
    "no introduction of titles nobody streamed": {"two_tower": {"introduction_share": 0.0}},
    "towers' residual whole": {"two_tower": {"residual_share": 1.0}},
    "mean aggregator": {"hgnn": {"aggregator": "mean"}},
    "sum aggregator": {"hgnn": {"aggregator": "sum"}},
    "one layer": {"hgnn": {"num_layers": 1, "fanouts": [10]}},
    "every edge of at least one user": {"graph": {"rule": "min_users", "min_users": 1}},
    "margin 0.1": {"hgnn": {"margin": 0.1}},
    "1 negative": {"hgnn": {"negatives": 1}},
    "titles without an edge by induction alone": {"hgnn": {"text_neighbors": 0}},
    "activation after the last layer": {"hgnn": {"final_activation": True}},
}


def _variations(
    chosen: Mapping[str, Mapping[str, Mapping[str, object]]],
) -> Callable[[Sequence[int]], list[Cell]]:
    def cells(seeds: Sequence[int]) -> list[Cell]:
        found = [seeded(OURS, seed, "evaluate", {"two_tower": _ONE}) for seed in seeds]
        # By far the longest: last, it would have one core to itself and leave the others idle.
        found += [
            seeded("the paper's configuration", seed, "evaluate", {"two_tower": _ONE}, "paper")
            for seed in seeds
        ]
        for name, overrides in chosen.items():
            towers = {**_ONE, **overrides.get("two_tower", {})}
            others = {group: values for group, values in overrides.items() if group != "two_tower"}
            found += [seeded(name, seed, "evaluate", {**others, "two_tower": towers}) for seed in seeds]
        return found

    return cells


SHARES = (1.0, 0.25, 0.05, 0.01)
"""Of the user-audiobook pairs before the split, that scarcity keeps."""

_AT_ALL_SHARES: Mapping[str, object] = {
    "models": ["LLM-KNN", "HGNN", "item-kNN", "item-kNN x recent popularity", "EASE", "ALS"],
    "ease_ridge": [1_000.0],
}
"""Rivals that take seconds, since there are as many runs of them as shares and seeds: EASE with the ridge in the middle
of those that tables 2 and 3 try, each of which is a system of equations as wide as the catalogues."""


def share_name(share: float) -> str:
    return f"{share:.0%} of pairs"


def _scarcity(seeds: Sequence[int]) -> list[Cell]:
    found = []
    for share in SHARES:
        for seed in seeds:
            # Of the whole, which tables 2 and 3 are made of as well, the seed chooses nothing: one name for all.
            kept = {"scarcity": {"share": share, "seed": seed if share < 1 else 1}}
            found += [
                seeded(share_name(share), seed, "evaluate", kept),
                seeded(share_name(share), seed, "rivals", {**kept, "rivals": _AT_ALL_SHARES}),
            ]
    return found


TABLES: dict[str, Table] = {
    "table1": Table(
        "Table 1: what each piece is worth",
        "warm",
        _variations({**ABLATIONS, **BEYOND}),
        "A to F are the paper's ablations, the rest goes beyond it. Each row changes one thing and trains anew.",
        seeds=1,
        ablation=True,
    ),
    "table2": Table(
        "Table 2: audiobooks, warm users",
        "warm",
        _everybody,
        "Warm users gave any audiobook signal before the split.",
        seeds=3,
        ceiling=True,
    ),
    "table3": Table(
        "Table 3: audiobooks, cold users",
        "cold",
        _everybody,
        "Cold users did something before the split, but never with an audiobook.",
        seeds=3,
        ceiling=True,
    ),
    "table4": Table(
        "Table 4: podcasts as the target",
        "all",
        lambda seeds: [
            seeded("podcasts", seed, "evaluate", {"source": {"target": "podcast"}}) for seed in seeds
        ],
        "The two roles are swapped: podcasts are recommended, audiobooks are what helps. Warm and cold users together.",
        seeds=1,
    ),
    "scarcity": Table(
        "Scarcity: what if the audiobooks were newer still",
        "all",
        _scarcity,
        "Each user-audiobook pair streamed before the split is kept by a seeded hash, a smaller share being part of a "
        "larger one; podcasts and music are whole. Who is judged, on what, comes from the whole history. EASE has a ridge "
        "of 1,000 at every share, where tables 2 and 3 choose one.",
        seeds=5,
    ),
    "analysis": Table(
        "Analysis: what the tables say of their users",
        "all",
        lambda seeds: [seeded("analysis", seed, "analysis") for seed in seeds],
        "Section 3 of the paper on this source, before any model.",
        seeds=1,
    ),
}
