"""Build the index of audiobook vectors: exact inner product, approximate past a size; its recall is measured and gated."""

from __future__ import annotations

import numpy as np
import pandas as pd

from audiorec import index as nearest
from audiorec.errors import BadData
from audiorec.settings import Settings
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write `audiobooks.faiss` and `audiobook_ids.parquet` (row number = position in the index)."""
    vectors = np.load(inputs.open("refresh", "item_vectors.npy"), allow_pickle=False)
    queries = np.load(inputs.open("refresh", "sample_user_vectors.npy"), allow_pickle=False)[
        : settings.index.recall_queries
    ]
    ids = pd.read_parquet(inputs.open("refresh", "popularity.parquet"))[["audiobook_id"]]
    built = nearest.build(vectors, settings.index)
    nearest.write(built, out.path("audiobooks.faiss"))
    # What is measured is what serving will read, not what lies in memory.
    read = nearest.read(out.path("audiobooks.faiss"))
    found = nearest.raise_effort(read, vectors, queries, settings.index)
    effort = nearest.effort(read)
    if effort != nearest.effort(built):
        nearest.write(read, out.path("audiobooks.faiss"))
    kind = type(built).__name__
    said = "" if effort is None else f", ef_search {effort}"
    print(
        f"{kind} over {len(vectors)} audiobooks: recall@100 {found:.4f} on {len(queries)} user vectors{said}"
    )
    if found < settings.index.min_recall:
        raise BadData(
            f"build_index: recall@100 of {kind} is {found:.4f}, expected at least {settings.index.min_recall} (index.min_recall); "
            "raise index.max_ef_search or index.hnsw_m, or index.exact_limit for an exact index"
        )
    ids.to_parquet(out.path("audiobook_ids.parquet"), index=False)
    return out.commit(
        counts={"audiobooks": len(vectors), "queries": len(queries)},
        kind=kind,
        recall_100=round(found, 6),
        ef_search=effort,
    )


if __name__ == "__main__":
    from audiorec.runner import main

    main("build_index")
