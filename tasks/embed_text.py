"""Embed text: one Sentence-BERT vector a title, encoded once a text and model, kept in a cache.

The cache is a dataset of its own (`text_vectors/{model}/…`): segments of text hashes and vectors. A second day
encodes only what is new or changed. What is in the cache never changes a result, because a text's vector does
not depend on the texts beside it (`audiorec/text.py`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from audiorec import text
from audiorec.settings import Settings
from audiorec.store import Manifest
from audiorec.taskio import Inputs, Output
from expectations.embeddings import check_embeddings


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write `audiobook_text.npy` [audiobooks, D] and `podcast_text.npy` [podcasts, D], in catalogue order."""
    texts = {
        kind: text.catalogue_texts(pd.read_parquet(inputs.open("extract", f"{kind}s.parquet")))
        for kind in ("audiobook", "podcast")
    }
    found = text.cached_vectors(
        out.store, settings.text, [entry for entries in texts.values() for entry in entries]
    )
    out.note(f"{found.encoded} text(s) encoded, {found.reused} from the cache")
    counts = {}
    without_text = {}
    for kind, entries in texts.items():
        matrix = found.matrix(entries)
        without_text[kind] = sum(not entry for entry in entries)
        counts[f"{kind}s"] = len(entries)
        for warning in check_embeddings(f"{kind}_text", matrix, unit_norm=True):
            out.note(f"warning: {warning}")
        np.save(out.path(f"{kind}_text.npy"), matrix, allow_pickle=False)
    return out.commit(counts=counts, without_text=without_text, width=found.width, model=settings.text.model)


if __name__ == "__main__":
    from audiorec.runner import main

    main("embed_text")
