"""The chain (design 3): which task reads which, and which settings change its result."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One task: its inputs by name, the settings groups it hashes and what it is for, in a line."""

    name: str
    inputs: tuple[str, ...]
    settings: tuple[str, ...]
    purpose: str
    package: str = "tasks"

    @property
    def module(self) -> str:
        """The module whose `run` does the work."""
        return f"{self.package}.{self.name}"


_TASKS = (
    Task(
        "extract",
        (),
        ("time", "extract"),
        "typed, deduplicated interactions a day; catalogue, users, rejects",
    ),
    Task("validate", ("extract",), ("time", "validation"), "data-quality verdict and Data Docs"),
    Task("embed_text", ("extract",), ("text",), "Sentence-BERT vectors of title and description"),
    Task("embed_music", ("extract",), ("time", "music"), "artist vectors, factorised on the train cut"),
    Task("build_graph", ("extract",), ("time", "graph", "scarcity"), "the co-listening graph at every cut"),
    Task("train_hgnn", ("embed_text", "build_graph"), ("time", "hgnn"), "HGNN weights and item embeddings"),
    Task(
        "train_two_tower",
        ("extract", "embed_text", "embed_music", "train_hgnn"),
        ("time", "two_tower", "scarcity"),
        "weights of both towers, with and without HGNN",
    ),
    Task(
        "evaluate",
        ("extract", "embed_text", "embed_music", "train_hgnn", "train_two_tower"),
        ("time", "evaluation", "scarcity"),
        "the protocol on the hold-out: metrics, segments, rivals, ranks",
    ),
    Task(
        "refresh",
        ("extract", "embed_text", "embed_music", "build_graph", "train_hgnn", "train_two_tower"),
        ("time",),
        "judged weights on everything known: item vectors, user features, popularity",
    ),
    Task("build_index", ("refresh",), ("index",), "nearest-neighbour index, recall measured and gated"),
    Task(
        "promote",
        (
            "extract",
            "embed_text",
            "embed_music",
            "build_graph",
            "train_hgnn",
            "train_two_tower",
            "evaluate",
            "refresh",
            "build_index",
        ),
        ("release", "evaluation"),
        "a registered MLflow version, the gate's verdict, the alias moved or not",
    ),
)

CHAIN: dict[str, Task] = {task.name: task for task in _TASKS}
"""Tasks by name, in the order in which they run."""

RIVALS = Task(
    "rivals",
    ("extract", "embed_text", "embed_music", "train_hgnn"),
    ("time", "evaluation", "scarcity", "rivals", "music"),
    "other recommenders on the same hold-out, for experiments",
    package="audiorec.experiments",
)

ORACLE = Task(
    "oracle",
    ("extract",),
    ("time", "evaluation"),
    "the ceiling of a simulated hold-out, for experiments",
    package="audiorec.experiments",
)

ANALYSIS = Task(
    "analysis",
    ("extract", "embed_text", "build_graph"),
    ("time", "text", "analysis"),
    "what the tables say of their users before any model (paper, section 3), for experiments",
    package="audiorec.experiments",
)

TASKS: dict[str, Task] = {
    **CHAIN,
    RIVALS.name: RIVALS,
    ORACLE.name: ORACLE,
    ANALYSIS.name: ANALYSIS,
}
"""All that the runner can run: the chain, and what only experiments need."""
