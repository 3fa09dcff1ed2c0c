"""HGNN training beside PyG's own loader and layers: edges a second, memory, and time to an equal validation figure.

    python -m benchmarks.hgnn_training [--nodes 25000 250000] [--batch 256 8192] [--seconds 60] [--out docs/results]

One run, one machine, one graph: every variant sees the same edges, features, fan-outs, widths, margin and number of
negatives, and is measured in a process of its own. `pyg` is `LinkNeighborLoader` with `HeteroConv` of
`SAGEConv(aggr="max", project=True)`, the nearest that PyG has to equations 2 and 3; the loader takes seed edges of one
type, so three loaders take turns. It needs torch-sparse or pyg-lib for sampling; where neither is there, that is said and
its rows are left out. A figure of speed here is a ratio within one run, never a promise.

A variant trains twice: once undisturbed, for edges a second and memory, and once from the start with a look at the
held-out links now and then (not counted as time), for the time to a figure.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiorec.experiments.publish import commit, processor
from models.edges import (
    AUDIOBOOK,
    EDGE_TYPES,
    PODCAST,
    Csr,
    EdgeType,
    NodeType,
    graph_from_links,
    reverse,
)
from models.hgnn import HeteroGraphSAGE
from models.losses import max_margin_loss
from models.training import HGNNTrainer, TrainingConfig

FEATURES, WIDTH, FANOUTS, NEGATIVES, MARGIN = 384, 128, (10, 5), 8, 0.4
COMMUNITY = 50
LINK_TYPES = tuple(t for t in EDGE_TYPES if t[0] <= t[2])
VARIANTS = ("pyg", "ours", "ours, not balanced")
LOOKS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of the training time after which the held-out links are looked at."""


def planted_graph(nodes: int, seed: int = 1) -> tuple[dict[NodeType, Tensor], dict[EdgeType, Csr]]:
    """A co-listening graph of communities: two fifths audiobooks, more links where podcasts are.

    Features are a community's centre with noise, so that there is something to learn and a figure to reach. 6, 12 and 24
    links a node of the audiobook-audiobook, audiobook-podcast and podcast-podcast type, four fifths inside a community.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {AUDIOBOOK: nodes * 2 // 5, PODCAST: nodes - nodes * 2 // 5}
    communities = max(1, nodes // COMMUNITY)
    centres = torch.randn(communities, FEATURES, generator=generator)
    own = {t: torch.randint(communities, (n,), generator=generator) for t, n in sizes.items()}
    features = {
        t: torch.nn.functional.normalize(
            centres[own[t]] + 2.0 * torch.randn(n, FEATURES, generator=generator)
        )
        for t, n in sizes.items()
    }
    order = {t: torch.argsort(own[t], stable=True) for t in sizes}
    start = {t: torch.searchsorted(own[t][order[t]], torch.arange(communities + 1)) for t in sizes}
    links = {}
    for link_type, degree in zip(LINK_TYPES, (6, 12, 24), strict=True):
        left, _, right = link_type
        one = torch.arange(sizes[left]).repeat_interleave(degree)
        inside = own[left][one]
        low, high = start[right][inside], start[right][inside + 1]
        place = low + (torch.rand(len(one), generator=generator) * (high - low)).long()
        other = order[right][place.clamp(max=sizes[right] - 1)]
        anywhere = torch.randint(sizes[right], (len(one),), generator=generator)
        stray = (torch.rand(len(one), generator=generator) < 0.2) | (high == low)
        other = torch.where(stray, anywhere, other)
        keep = one != other if left == right else torch.ones_like(one, dtype=torch.bool)
        pairs = torch.stack([one[keep], other[keep]])
        if left == right:
            pairs = torch.stack([pairs.min(dim=0).values, pairs.max(dim=0).values])
        links[link_type] = torch.unique(pairs, dim=1)
    return features, graph_from_links(links, sizes)


class OurTraining:
    """One step of ours at a time, without the checkpoints and records of the task around it."""

    def __init__(self, features: Any, graph: Any, batch: int, balanced: bool) -> None:
        self.trainer = HGNNTrainer(
            HeteroGraphSAGE(FEATURES, WIDTH, WIDTH, seed=1),
            features,
            graph,
            TrainingConfig(
                batch_size=batch,
                num_negatives=NEGATIVES,
                margin=MARGIN,
                fanouts=FANOUTS,
                balanced=balanced,
                max_epochs=10**6,
                seed=1,
            ),
            device="cpu",
        )
        self._epoch = 0

    def steps(self) -> Iterator[int]:
        """Trains; yields the edges of each step."""
        while True:
            while (batch := self.trainer.sampler.next_batch()) is not None:
                self.trainer._step(batch)
                yield len(batch.anchor)
            self._epoch += 1
            self.trainer.sampler.start_epoch(self._epoch)

    def validate(self) -> float:
        return float(self.trainer.validate()["mrr"])


class PyGTraining:
    """PyG's loader and layers on the graph that our trainer trains on, judged by our trainer's validation."""

    def __init__(self, features: Any, graph: Any, batch: int) -> None:
        from torch_geometric.data import HeteroData
        from torch_geometric.loader import LinkNeighborLoader
        from torch_geometric.nn import HeteroConv, SAGEConv
        from torch_geometric.sampler import NegativeSampling

        torch.manual_seed(1)
        self.judge = OurTraining(features, graph, batch, balanced=True).trainer
        data = HeteroData()
        for node_type, x in features.items():
            data[node_type].x = x
        for edge_type, csr in self.judge.graph.items():
            data[edge_type].edge_index = csr.edge_index()
        self.data = data
        self.loaders = [
            LinkNeighborLoader(
                data,
                num_neighbors=list(FANOUTS),
                batch_size=batch,
                edge_label_index=(edge_type, data[edge_type].edge_index),
                neg_sampling=NegativeSampling("triplet", amount=NEGATIVES),
                shuffle=True,
            )
            for edge_type in LINK_TYPES
        ]

        def convolution(width: int) -> Any:
            return HeteroConv(
                {t: SAGEConv((width, width), WIDTH, aggr="max", project=True) for t in data.edge_types},
                aggr="sum",
            )

        self.layers = torch.nn.ModuleList([convolution(FEATURES), convolution(WIDTH)])
        self.optimizer = torch.optim.Adam(self.layers.parameters(), lr=1e-3)

    def embed(self, x: Any, edges: Any) -> dict[str, Tensor]:
        hidden = self.layers[0](x, edges)
        hidden = self.layers[1]({t: h.relu() for t, h in hidden.items()}, edges)
        return {t: torch.nn.functional.normalize(h) for t, h in hidden.items()}

    @torch.no_grad()
    def embed_by_parts(self, rows: int = 8_192) -> dict[str, Tensor]:
        """`embed` of the whole graph, some items at a time: at once its messages would take tens of gigabytes."""
        hidden = self.data.x_dict
        for number, layer in enumerate(self.layers):
            following = {t: torch.zeros(len(x), WIDTH) for t, x in hidden.items()}
            for edge_type, csr in self.judge.graph.items():
                # Lists are those of an item's own neighbours, so messages flow along the reverse type.
                centre, neighbour = edge_type[0], edge_type[2]
                convolution = layer.convs[reverse(edge_type)]
                projected = convolution.lin(hidden[neighbour]).relu()
                convolution.project = False
                for start in range(0, csr.num_rows, rows):
                    own = hidden[centre][start : start + rows]
                    some = _lists(csr, start, start + len(own))
                    following[centre][start : start + rows] += convolution((projected, own), some)
                convolution.project = True
            hidden = following if number else {t: h.relu() for t, h in following.items()}
        return {t: torch.nn.functional.normalize(h) for t, h in hidden.items()}

    def steps(self) -> Iterator[int]:
        """Trains; the loaders of the three link types take turns."""
        running = [iter(loader) for loader in self.loaders]
        turn = 0
        while True:
            number = turn % len(self.loaders)
            turn += 1
            try:
                batch = next(running[number])
            except StopIteration:
                running[number] = iter(self.loaders[number])
                batch = next(running[number])
            left, _, right = LINK_TYPES[number]
            z = self.embed(batch.x_dict, batch.edge_index_dict)
            source = batch[left].src_index
            positive, negative = batch[right].dst_pos_index, batch[right].dst_neg_index
            loss = max_margin_loss(
                z[left][source], z[right][positive], z[right][negative.view(len(source), -1)], margin=MARGIN
            )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield len(source)

    def validate(self) -> float:
        """The held-out links' mean reciprocal rank, by the same fixed negatives as ours."""
        return float(self.judge.validate_embeddings(self.embed_by_parts())["mrr"])


def _lists(csr: Csr, start: int, stop: int) -> Tensor:
    """Edges [2, E] from the neighbours of some rows to these rows, counted from `start`."""
    bounds = csr.indptr[start : stop + 1].long()
    centre = torch.arange(stop - start).repeat_interleave(bounds.diff())
    return torch.stack([csr.indices[bounds[0] : bounds[-1]].long(), centre])


def make(variant: str, features: Any, graph: Any, batch: int) -> Any:
    if variant == "pyg":
        return PyGTraining(features, graph, batch)
    return OurTraining(features, graph, batch, balanced=variant == "ours")


def measure(variant: str, nodes: int, batch: int, seconds: float) -> dict[str, Any]:
    """Edges a second over `seconds` of training after a first step, peak memory, and the figure by time trained."""
    torch.set_num_threads(2)
    features, graph = planted_graph(nodes)
    before = resident_mb()
    steps = make(variant, features, graph, batch).steps()
    next(steps)
    edges, trained = 0, 0.0
    while trained < seconds:
        began = time.perf_counter()
        edges += next(steps)
        trained += time.perf_counter() - began
    found = {
        "nodes": nodes,
        "batch": batch,
        "variant": variant,
        "edges_per_s": edges / trained,
        "peak_mb": peak_mb(),
        "graph_mb": before,
    }
    del steps
    return found | {"curve": curve(make(variant, features, graph, batch), seconds)}


def resident_mb() -> float:
    """Memory held now; `peak_mb` counts from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) / 1024


def curve(training: Any, seconds: float) -> list[tuple[float, float]]:
    """(seconds trained, MRR of the held-out links), looked at ever more seldom."""
    steps, trained, looked = training.steps(), 0.0, [(0.0, training.validate())]
    for share in LOOKS:
        while trained < share * seconds:
            began = time.perf_counter()
            next(steps)
            trained += time.perf_counter() - began
        looked.append((trained, training.validate()))
    return looked


def seconds_to(curve: list[tuple[float, float]], figure: float) -> float | None:
    """When a curve is first seen at a figure or above; None if never."""
    return next((seconds for seconds, reached in curve if reached >= figure), None)


def in_a_process(variant: str, nodes: int, batch: int, seconds: float) -> dict[str, Any]:
    """`measure` in a process of its own, so that peak memory is the variant's; {} with a word if it cannot run."""
    arguments = json.dumps([variant, nodes, batch, seconds])
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.hgnn_training", "--one", arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    last = (ended.stderr.strip().splitlines() or [f"ended with {ended.returncode}"])[-1]
    if ended.returncode and last.startswith("ImportError"):
        print(f"{variant}, {nodes} nodes, batch {batch}: left out, {last}", flush=True)
        return {}
    if ended.returncode:
        raise RuntimeError(f"{variant}, {nodes} nodes, batch {batch}: {last}")
    found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def compare(nodes: int, batch: int, seconds: float) -> list[dict[str, Any]]:
    """All variants at one size, each with its time to the figure at which another one ended."""
    rows = [found for variant in VARIANTS if (found := in_a_process(variant, nodes, batch, seconds))]
    by_name = {row["variant"]: row for row in rows}
    for row in rows:
        own = [tuple(point) for point in row.pop("curve")]
        row["mrr"], row["curve"] = own[-1][1], own
    pyg, unbalanced = by_name.get("pyg"), by_name.get("ours, not balanced")
    for row in rows:
        row["ratio_to_pyg"] = row["edges_per_s"] / pyg["edges_per_s"] if pyg else None
        row["s_to_pyg"] = seconds_to(row["curve"], pyg["mrr"]) if pyg else None
        row["s_to_unbalanced"] = seconds_to(row["curve"], unbalanced["mrr"]) if unbalanced else None
        said = ", ".join(f"{at:.0f} s {reached:.3f}" for at, reached in row["curve"])
        print(
            f"{row['variant']}, {nodes} nodes, batch {batch}: {row['edges_per_s']:.0f} edges/s, "
            f"{row['peak_mb']:.0f} MiB (the graph alone {row['graph_mb']:.0f}); MRR {said}",
            flush=True,
        )
    return rows


COLUMNS = (
    "nodes",
    "batch",
    "variant",
    "edges_per_s",
    "peak_mb",
    "ratio_to_pyg",
    "graph_mb",
    "mrr",
    "s_to_pyg",
    "s_to_unbalanced",
)


def write(rows: list[dict[str, Any]], seconds: float, out: Path, load: float) -> None:
    """The table as CSV, and a page that says what it means."""
    with (out / "hgnn_training.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )

    def shown(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = [
        "# HGNN training beside PyG",
        "",
        "Edges a second, memory and time to a figure on a planted graph: communities of 50 items, two fifths of the items",
        f"audiobooks, 6, 12 and 24 links an item, {FEATURES} features, width {WIDTH}, fan-outs {FANOUTS[0]} and {FANOUTS[1]}, "
        f"{NEGATIVES} negatives. `pyg` is",
        '`LinkNeighborLoader` with `HeteroConv(SAGEConv(aggr="max", project=True))` on the same edges and features, each',
        f"variant in a process of its own, {seconds:.0f} s of training after a first step. `benchmarks/hgnn_training.py`.",
        "",
        "| nodes | batch | variant | edges/s | times PyG | peak MiB (the graph alone) | MRR at the end | s to PyG's last MRR | s to the unbalanced sampler's |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {row['nodes']:,} | {row['batch']:,} | {row['variant']} | {row['edges_per_s']:,.0f} | "
            f"{shown(row['ratio_to_pyg'], '.1f')} | {row['peak_mb']:,.0f} ({row['graph_mb']:,.0f}) | {row['mrr']:.3f} | "
            f"{shown(row['s_to_pyg'], '.1f')} | {shown(row['s_to_unbalanced'], '.1f')} |"
            for row in rows
        ),
        "",
        "MRR is that of held-out links among fixed negatives, the same for all. It is looked at after "
        f"{', '.join(f'{share * seconds:.1f}' for share in LOOKS)} s (the first whole step after), so a time is an upper",
        "bound; 0 is the untrained model, – is never. PyG samples by torch-sparse or pyg-lib, whichever is there. It does more",
        f"arithmetic: `project=True` keeps the width of {FEATURES} before the maximum, where ours projects to {WIDTH}, and its layers",
        "run over the whole sampled subgraph. It also learns under easier rules: a supervised link may carry its own message,",
        "a true neighbour may be a negative, and the audiobook is always the anchor.",
        "",
        f"Command: `python -m benchmarks.hgnn_training {' '.join(sys.argv[1:])}`, commit `{commit()}`, {processor()}, "
        f"{os.cpu_count()} cores, load {load:.1f} before.",
    ]
    (out / "hgnn_training.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[25_000, 250_000])
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 8_192])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, help="folder for hgnn_training.md and .csv")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(*json.loads(given.one))))
        return
    load = os.getloadavg()[0]
    rows = [row for n in given.nodes for batch in given.batch for row in compare(n, batch, given.seconds)]
    if given.out:
        write(rows, given.seconds, given.out, load)


if __name__ == "__main__":
    main()
