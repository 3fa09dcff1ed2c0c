"""Embed text: one Sentence-BERT vector a title, encoded once a text and model, kept in a cache.

The cache is a dataset of its own (`text_vectors/{model}/…`): segments of text hashes and vectors. A second day
encodes only what is new or changed. What is in the cache never changes a result, because a text's vector does
not depend on the texts beside it (`audiorec/text.py`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from audiorec import text
from audiorec.fingerprint import digest
from audiorec.progress import Progress
from audiorec.settings import Settings
from audiorec.store import Manifest, Store
from audiorec.taskio import Inputs, Output
from expectations.embeddings import check_embeddings

CACHE = "text_vectors"


def run(settings: Settings, inputs: Inputs, out: Output) -> Manifest:
    """Write `audiobook_text.npy` [audiobooks, D] and `podcast_text.npy` [podcasts, D], in catalogue order."""
    texts = {
        kind: text.catalogue_texts(pd.read_parquet(inputs.open("extract", f"{kind}s.parquet")))
        for kind in ("audiobook", "podcast")
    }
    model_key = text.model_key(settings.text)
    wanted = sorted({entry for entries in texts.values() for entry in entries if entry})
    hashes = {entry: text.text_hash(entry) for entry in wanted}
    cache = _load_cache(out.store, model_key)
    missing = [entry for entry in wanted if hashes[entry] not in cache]
    width = next(iter(cache.values())).shape[0] if cache else 0
    if missing:
        model = text.load_model(settings.text)
        progress = Progress(len(missing), "texts")
        vectors = text.encode(model, missing, progress.advance)
        width = vectors.shape[1]
        _store_segment(out, model_key, settings, [hashes[entry] for entry in missing], vectors)
        cache.update(zip((hashes[entry] for entry in missing), vectors, strict=True))
    out.note(f"{len(missing)} text(s) encoded, {len(wanted) - len(missing)} from the cache")
    counts = {}
    without_text = {}
    for kind, entries in texts.items():
        matrix = np.zeros((len(entries), max(width, 1)), np.float32)
        for row, entry in enumerate(entries):
            if entry:
                matrix[row] = cache[hashes[entry]]
        without_text[kind] = sum(not entry for entry in entries)
        counts[f"{kind}s"] = len(entries)
        for warning in check_embeddings(f"{kind}_text", matrix, unit_norm=True):
            out.note(f"warning: {warning}")
        np.save(out.path(f"{kind}_text.npy"), matrix, allow_pickle=False)
    return out.commit(counts=counts, without_text=without_text, width=width, model=settings.text.model, model_key=model_key)


def _load_cache(store: Store, model_key: str) -> dict[str, np.ndarray]:
    cache: dict[str, np.ndarray] = {}
    for segment in store.versions(CACHE, model_key):
        hashes = pd.read_parquet(store.open(segment, "texts.parquet"))["text_hash"]
        vectors = np.load(store.open(segment, "vectors.npy"), mmap_mode="r", allow_pickle=False)
        cache.update(zip(hashes, vectors, strict=True))
    return cache


def _store_segment(out: Output, model_key: str, settings: Settings, hashes: list[str], vectors: np.ndarray) -> None:
    table, matrix = out.folder / "texts.parquet", out.folder / "vectors.npy"
    pd.DataFrame({"text_hash": hashes}).to_parquet(table, index=False)
    np.save(matrix, vectors, allow_pickle=False)
    out.store.commit(
        dataset=CACHE,
        key=model_key,
        fingerprint=digest(hashes),
        outputs={"texts.parquet": table, "vectors.npy": matrix},
        inputs={},
        settings=settings.slice(("text",)),
        code=out.code,
        facts={"counts": {"texts": len(hashes)}},
        run=out.run,
    )


if __name__ == "__main__":
    from audiorec.runner import main

    main("embed_text")
