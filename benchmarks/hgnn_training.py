"""HGNN training beside PyG's own loader and layers: edges a second, memory, and time to an equal validation figure.

    python benchmarks/hgnn_training.py [--nodes 25000 250000] [--batch 256 8192] [--seconds 30] [--out docs/results]

One run, one machine, one graph: every variant sees the same edges, features, fan-outs, widths, margin and number of
negatives, and is measured in a process of its own. `pyg` is `LinkNeighborLoader` with `HeteroConv` of
`SAGEConv(aggr="max", project=True)`, the nearest that PyG has to equations 2 and 3; the loader takes seed edges of one
type, so three loaders take turns. It needs torch-sparse or pyg-lib for sampling; where neither is there, that is said and
its rows are left out. A figure of speed here is a ratio within one run, never a promise.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.edges import (
    AUDIOBOOK,
    EDGE_TYPES,
    PODCAST,
    Csr,
    EdgeType,
    NodeType,
    graph_from_links,
)
from models.hgnn import HeteroGraphSAGE
from models.losses import max_margin_loss
from models.training import HGNNTrainer, TrainingConfig

FEATURES, WIDTH, FANOUTS, NEGATIVES, MARGIN = 384, 128, (10, 5), 8, 0.4
COMMUNITY = 50
LINK_TYPES = tuple(t for t in EDGE_TYPES if t[0] <= t[2])
VARIANTS = ("pyg", "ours", "ours, not balanced")


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
        with torch.no_grad():
            z = self.embed(self.data.x_dict, self.data.edge_index_dict)
        return float(self.judge.validate_embeddings(z)["mrr"])


def measure(variant: str, nodes: int, batch: int, seconds: float, target: float | None) -> dict[str, Any]:
    """Edges a second over `seconds` of training after a warm-up, peak memory, and the time to the target figure."""
    torch.set_num_threads(2)
    features, graph = planted_graph(nodes)
    made: Any = (
        PyGTraining(features, graph, batch)
        if variant == "pyg"
        else OurTraining(features, graph, batch, balanced=variant == "ours")
    )
    steps = made.steps()
    next(steps)
    edges, reached, figure, trained, last_check = 0, None, 0.0, 0.0, 0.0
    while trained < seconds:
        step = time.perf_counter()
        edges += next(steps)
        trained += time.perf_counter() - step
        if trained - last_check > seconds / 10:
            last_check, figure = trained, made.validate()
            if target is not None and reached is None and figure >= target:
                reached = trained
    return {
        "nodes": nodes,
        "batch": batch,
        "variant": variant,
        "edges_per_s": edges / trained,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "mrr": max(figure, made.validate()),
        "seconds_to_target": reached,
    }


def in_a_process(
    variant: str, nodes: int, batch: int, seconds: float, target: float | None
) -> dict[str, Any]:
    """`measure` in a process of its own, so that peak memory is the variant's; {} with a word if it cannot run."""
    arguments = json.dumps([variant, nodes, batch, seconds, target])
    ended = subprocess.run(
        [sys.executable, __file__, "--one", arguments], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"{variant}, {nodes} nodes, batch {batch}: left out, {last}", flush=True)
        return {}
    found: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def compare(nodes: int, batch: int, seconds: float) -> list[dict[str, Any]]:
    """All variants at one size; the target figure is nine tenths of what PyG reaches in its time (or ours, without)."""
    rows = []
    target = None
    for variant in VARIANTS:
        found = in_a_process(variant, nodes, batch, seconds, target)
        if not found:
            continue
        target = target or 0.9 * found["mrr"]
        rows.append(found)
    base = next((row["edges_per_s"] for row in rows if row["variant"] == "pyg"), None)
    for row in rows:
        row["ratio_to_pyg"] = row["edges_per_s"] / base if base else None
        ratio = "" if base is None else f", {row['ratio_to_pyg']:.1f} times pyg"
        print(
            f"{row['variant']}, {nodes} nodes, batch {batch}: {row['edges_per_s']:.0f} edges/s{ratio}, "
            f"{row['peak_mb']:.0f} MiB, MRR {row['mrr']:.3f} after {seconds:.0f} s, "
            f"{row['seconds_to_target'] or float('nan'):.1f} s to {target:.3f}",
            flush=True,
        )
    return rows


COLUMNS = ("nodes", "batch", "variant", "edges_per_s", "peak_mb", "ratio_to_pyg", "mrr", "seconds_to_target")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=[25_000, 250_000])
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 8_192])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path, help="folder for hgnn_training.csv")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(*json.loads(given.one))))
        return
    rows = [row for n in given.nodes for batch in given.batch for row in compare(n, batch, given.seconds)]
    if given.out:
        with (given.out / "hgnn_training.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(
                {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows
            )


if __name__ == "__main__":
    main()
