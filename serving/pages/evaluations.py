"""Figures of evaluations, as `evaluate` wrote them."""

from __future__ import annotations

from collections import OrderedDict

import pandas as pd

from audiorec.store import Manifest, Store

REMEMBERED = 200
"""Evaluations whose figures are kept in memory."""


class Evaluations:
    """`metrics.csv` of evaluations, each read and checked once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tables: OrderedDict[tuple[str, str], pd.DataFrame] = OrderedDict()

    def of(self, evaluate: Manifest) -> pd.DataFrame:
        """Raises Corrupt if the file is not what its manifest says."""
        key = evaluate.key, evaluate.fingerprint
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = pd.read_csv(self._store.open(evaluate, "metrics.csv"))
            while len(self._tables) > REMEMBERED:
                self._tables.popitem(last=False)
        return found


def hit_metric(metrics: pd.DataFrame) -> str:
    """The name of the hit rate among the metrics: HR@10, say."""
    return next((name for name in metrics["metric"] if name.startswith("HR@")), "HR@10")
