"""The training of the graph network: a loop without files and without a clock.

The task around it stores what `state_dict` gives (tensors as safetensors, the record as JSON) and shows
progress.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from models.edges import Csr, EdgeType, NodeType
from models.hgnn import HeteroGraphSAGE
from models.losses import max_margin_loss
from models.sampler import LinkBatch, MultiLinkNeighborSampler, hold_out_links, seeded_generator


@dataclass(frozen=True)
class TrainingConfig:
    """How the graph network is trained. Origin of each value: paper, or a choice where it is silent."""

    batch_size: int = 256
    """Supervised links a step (paper)."""
    learning_rate: float = 1e-3
    """Adam's (paper)."""
    max_epochs: int = 50
    """Paper."""
    patience: int = 10
    """Epochs without a better validation metric before stopping (paper)."""
    margin: float = 0.1
    """Delta of eq. 4, in cosine (choice)."""
    num_negatives: int = 4
    """Negatives an anchor (choice)."""
    negative_type: Literal["positive", "any"] = "positive"
    """Node type of negatives: the positive's, or any (choice)."""
    negative_pool: int | None = None
    """Different negatives a batch and node type; None: each is drawn on its own (choice)."""
    fanouts: tuple[int, ...] = (10, 5)
    """Neighbours a relation, nearest hop first (choice)."""
    balanced: bool = True
    """Balanced multi-link sampler (paper); False is its ablation A."""
    edges_per_epoch: int | None = None
    """At most so many supervised links an epoch, over all types; None: as the sampler gives (choice)."""
    validation_share: float = 0.1
    """Share of the links held out to choose when to stop (paper); their messages are removed as well
    (choice)."""
    max_validation_links: int = 2_000
    """At most so many held-out links a type (choice)."""
    validation_negatives: int = 100
    """Fixed negatives a held-out link (choice)."""
    max_neighbors: int | None = None
    """Neighbours a relation when embedding for validation; None: all (choice)."""
    seed: int = 0


@dataclass(frozen=True)
class _Validation:
    """Held-out links with their negatives, as rows of the embeddings stacked by node type."""

    anchor: Tensor
    positive: Tensor
    negatives: Tensor
    mask: Tensor
    link_type: Tensor


class HGNNTrainer:
    """Trains a model on one graph, epoch by epoch, resumable after any batch.

    A tenth of the links of each type is held out; they carry no message, and every epoch ends with the mean
    reciprocal rank of the held-out partner among fixed negatives, averaged over link types so that the most
    common type does not decide alone. Equal scores share their places, so that a model which gives everything
    the same vector is not perfect. The best epoch's weights are kept. Without anything to hold out (a tiny
    graph) the metric is minus the training loss.

    Everything random follows from `config.seed`; on the CPU with the same number of threads, a run that was
    stopped and restored equals an undisturbed one bit for bit.
    """

    def __init__(
        self,
        model: HeteroGraphSAGE,
        features: Mapping[NodeType, Any],
        graph: Mapping[EdgeType, Csr],
        config: TrainingConfig,
        device: str | torch.device | None = None,
    ) -> None:
        """features a node type [N, F] float, numpy or torch; graph: lists by edge type, numpy or torch."""
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.config = config
        self.model = model.to(self.device)
        self.features = {t: torch.as_tensor(x).to(self.device, torch.float32) for t, x in features.items()}
        num_nodes = {t: len(x) for t, x in self.features.items()}
        self.graph, self.held_out = hold_out_links(
            graph, config.validation_share, seeded_generator(config.seed, 3), config.max_validation_links
        )
        types = max(1, sum(graph[t].num_edges > 0 for t in self.held_out))
        self.sampler = MultiLinkNeighborSampler(
            self.graph,
            num_nodes,
            known_graph=graph,
            fanouts=config.fanouts,
            batch_size=config.batch_size,
            num_negatives=config.num_negatives,
            links_per_type=None
            if config.edges_per_epoch is None
            else max(1, config.edges_per_epoch // types),
            balanced=config.balanced,
            negative_type=config.negative_type,
            negative_pool=config.negative_pool,
            seed=config.seed,
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate)
        self._validation = self._fixed_validation()
        self.history: list[dict[str, Any]] = []
        self.best_metric = -math.inf
        self.best_epoch = -1
        self.best_weights = self._weights()
        self._loss_sum = 0.0
        self._loss_links = 0

    # -- training --------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return len(self.history)

    @property
    def finished(self) -> bool:
        """All epochs done, or `patience` of them without a better metric."""
        return (
            self.epoch >= self.config.max_epochs or self.epoch - 1 - self.best_epoch >= self.config.patience
        )

    def run_epoch(self, progress: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Train to the end of the current epoch, validate, keep the weights if they are the best.

        `progress` is called after each batch with epoch, batch (done), batches, links, loss (mean of the
        epoch so far); `state_dict` may be taken there. Returns the epoch's line of `history`: epoch, links,
        loss, metric, mrr and validation_loss (None without held-out links), mrr_by_type, best.
        """
        if self.finished:
            raise RuntimeError(f"training is finished after {self.epoch} epochs; run_epoch has nothing to do")
        self.model.train()
        while (batch := self.sampler.next_batch()) is not None:
            loss = self._step(batch)
            self._loss_sum += loss * len(batch.anchor)
            self._loss_links += len(batch.anchor)
            if progress is not None:
                progress(
                    {
                        "epoch": self.epoch,
                        "batch": self.sampler.position,
                        "batches": len(self.sampler),
                        "links": self._loss_links,
                        "loss": self._loss_sum / self._loss_links,
                    }
                )
        line: dict[str, Any] = {
            "epoch": self.epoch,
            "links": self._loss_links,
            "loss": self._loss_sum / self._loss_links,
        }
        line |= self.validate()
        line["metric"] = -line["loss"] if line["mrr"] is None else line["mrr"]
        line["best"] = line["metric"] > self.best_metric
        if line["best"]:
            self.best_metric, self.best_epoch = line["metric"], line["epoch"]
            self.best_weights = self._weights()
        self.history.append(line)
        self._loss_sum, self._loss_links = 0.0, 0
        self.sampler.start_epoch(self.epoch)
        return line

    def fit(self, progress: Callable[[dict[str, Any]], None] | None = None) -> list[dict[str, Any]]:
        """Run epochs until `finished`, then put the best weights into the model. Returns `history`."""
        while not self.finished:
            self.run_epoch(progress)
        self.model.load_state_dict(self.best_weights)
        return self.history

    def _step(self, batch: LinkBatch) -> float:
        blocks = batch.blocks.to(self.device)
        if self.model.dropout:
            # Dropout's noise is the only use of torch's own generator: tie it to the place in the training.
            torch.manual_seed(
                seeded_generator(self.config.seed, 4, self.epoch, self.sampler.position).initial_seed()
            )
        inputs = {t: self._rows(t, nodes) for t, nodes in blocks.input_nodes.items()}
        embeddings = self.model(inputs, blocks)
        z = torch.cat([embeddings[t] for t in self.sampler.node_types])
        loss = max_margin_loss(
            z.index_select(0, batch.anchor.to(self.device)),
            z.index_select(0, batch.positive.to(self.device)),
            z.index_select(0, batch.negatives.view(-1).to(self.device)).view(*batch.negatives.shape, -1),
            batch.negative_mask.to(self.device),
            self.config.margin,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"loss is {value} in epoch {self.epoch}, batch {self.sampler.position}; check the features "
                "for values that are not finite, or lower learning_rate"
            )
        return value

    def _rows(self, node_type: NodeType, nodes: Tensor) -> Tensor:
        features = self.features[node_type]
        return features if len(nodes) == len(features) else features.index_select(0, nodes)

    # -- validation ------------------------------------------------------------------------------------

    def _fixed_validation(self) -> _Validation | None:
        generator = seeded_generator(self.config.seed, 5)
        ends, codes = [], []
        for code, (link_type, links) in enumerate(self.held_out.items()):
            offsets = torch.tensor(
                [[self.sampler.offsets[link_type[0]]], [self.sampler.offsets[link_type[2]]]]
            )
            ends.append(links.long() + offsets)
            codes.append(torch.full((links.shape[1],), code))
        both, code_of = torch.cat(ends, dim=1), torch.cat(codes)
        if both.shape[1] == 0:
            return None
        swap = torch.rand(len(code_of), generator=generator) < 0.5
        anchor = torch.where(swap, both[1], both[0])
        positive = torch.where(swap, both[0], both[1])
        negatives, mask = self.sampler.draw_negatives(
            anchor, positive, self.config.validation_negatives, generator
        )
        return _Validation(anchor, positive, negatives, mask, code_of)

    def validate(self) -> dict[str, Any]:
        """The held-out links under the present weights: mrr (mean over link types), mrr_by_type,
        validation_loss."""
        if self._validation is None:
            return {"mrr": None, "mrr_by_type": {}, "validation_loss": None}
        return self.validate_embeddings(
            self.model.embed_graph(
                self.features, self.graph, max_neighbors=self.config.max_neighbors, seed=self.config.seed
            )
        )

    def validate_embeddings(self, embeddings: Mapping[NodeType, Tensor]) -> dict[str, Any]:
        """The same of any embeddings [N, D] a node type, another model's as well.

        Raises: ValueError if no link was held out.
        """
        links = self._validation
        if links is None:
            raise ValueError("no link is held out; validation_share or the graph is too small")
        z = torch.cat([embeddings[t] for t in self.sampler.node_types])
        reciprocal, losses = [], []
        for part in torch.arange(len(links.anchor)).split(1_024):
            anchor, positive = z[links.anchor[part]], z[links.positive[part]]
            scores = torch.einsum("bd,bkd->bk", anchor, z[links.negatives[part]])
            target = (anchor * positive).sum(dim=1, keepdim=True)
            mask = links.mask[part]
            ahead = ((scores > target) & mask).sum(dim=1) + 0.5 * ((scores == target) & mask).sum(dim=1)
            reciprocal.append(1.0 / (1.0 + ahead.double()))
            losses.append(
                max_margin_loss(anchor, positive, scores, mask, self.config.margin).item() * len(part)
            )
        ranks = torch.cat(reciprocal)
        by_type = {
            f"{t[0]}-{t[2]}": ranks[links.link_type == code].mean().item()
            for code, t in enumerate(self.held_out)
            if bool((links.link_type == code).any())
        }
        return {
            "mrr": sum(by_type.values()) / len(by_type),
            "mrr_by_type": by_type,
            "validation_loss": sum(losses) / len(ranks),
        }

    # -- state -----------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on: flat CPU tensors, and a record of what JSON can hold."""
        tensors = {f"model.{name}": value for name, value in self._weights().items()}
        tensors |= {f"best.{name}": value.clone() for name, value in self.best_weights.items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            for name, value in moments.items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().cpu().clone()
        record = {
            "config": _jsonable(asdict(self.config)),
            "graph": self._digest(),
            "sampler": self.sampler.state(),
            "loss_sum": self._loss_sum,
            "loss_links": self._loss_links,
            "best_metric": None if self.best_epoch < 0 else self.best_metric,
            "best_epoch": self.best_epoch,
            "history": [dict(line) for line in self.history],
        }
        return tensors, record

    def load_state_dict(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises: ValueError if it belongs to another configuration, graph or model.
        """
        for name, ours in (("config", _jsonable(asdict(self.config))), ("graph", self._digest())):
            if record[name] != ours:
                differing = sorted(k for k in {*ours, *record[name]} if ours.get(k) != record[name].get(k))
                raise ValueError(
                    f"the checkpoint's {name} differs in {differing}: stored "
                    f"{[record[name].get(k) for k in differing]}, now {[ours.get(k) for k in differing]}; "
                    "delete the checkpoint to start anew"
                )
        group = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
        try:
            self.model.load_state_dict(group("model."))
        except RuntimeError as error:
            raise ValueError(f"the checkpoint's weights do not fit the model: {error}") from error
        self.best_weights = {name: value.clone() for name, value in group("best.").items()}
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in group("optimizer.").items():
            index, moment = name.split(".", 1)
            state.setdefault(int(index), {})[moment] = value.clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.history = [dict(line) for line in record["history"]]
        self.best_epoch = record["best_epoch"]
        self.best_metric = -math.inf if record["best_metric"] is None else record["best_metric"]
        self._loss_sum, self._loss_links = record["loss_sum"], record["loss_links"]
        self.sampler.load_state(record["sampler"])

    def _digest(self) -> dict[str, int]:
        """Sizes by which a checkpoint of another graph is told; the task compares fingerprints besides."""
        digest = {f"{t}_nodes": n for t, n in self.sampler.num_nodes.items()}
        return digest | {f"{t[0]}-{t[2]}_links": links.shape[1] for t, links in self.sampler.links.items()}


def _jsonable(value: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()}
