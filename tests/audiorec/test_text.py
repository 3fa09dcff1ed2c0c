"""Text vectors: the same bytes for the same text, whatever is encoded beside it and whatever the cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from audiorec import text
from audiorec.errors import BadSettings
from audiorec.settings import Text
from audiorec.store import Store

SETTINGS = Text(max_tokens=24)

TEXTS = [
    "The Last Ferry. A storm, an island, and a secret that nobody kept.",
    "Der Leuchtturm. Ein Wärter zählt die Schiffe, bis eines nicht mehr kommt.",
    "La casa del río. Tres hermanas vuelven al pueblo.",
    "吾輩は猫である。名前はまだ無い。",
    "Ferry",
    "Ferry.",
    "ferry",
    "A much longer description, which goes on and on about harbours, ferries, tides, timetables and the weather "
    "at sea, so that it has to be cut off where the model takes no more tokens than it was told to.",
    "One two three four five six seven.",
    "Seven six five four three two one.",
]


@pytest.fixture(scope="module")
def model() -> Any:
    return text.load_model(SETTINGS)


# --- the model ------------------------------------------------------------------------------------------


def test_a_vector_depends_on_its_own_text_alone(model: Any):
    """Alone, together, in another order, beside copies and beside many others: the same bytes."""
    together = text.encode(model, TEXTS)
    order = np.random.default_rng(1).permutation(len(TEXTS))
    assert text.encode(model, [TEXTS[i] for i in order]).tobytes() == together[order].tobytes()
    crowd = [f"{number} {TEXTS[4]}" for number in range(40)]
    beside = text.encode(model, [*crowd, *TEXTS, *TEXTS])
    assert beside[40 : 40 + len(TEXTS)].tobytes() == beside[40 + len(TEXTS) :].tobytes() == together.tobytes()
    for number in range(0, len(TEXTS), 3):
        assert text.encode(model, [TEXTS[number]]).tobytes() == together[[number]].tobytes()


def test_vectors_have_unit_length_and_tell_texts_apart(model: Any):
    vectors = text.encode(model, TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)
    similar, other = vectors[4] @ vectors[5], vectors[4] @ vectors[8]
    assert similar > 0.8 > other


def test_an_empty_text_has_zeros(model: Any):
    vectors = text.encode(model, ["", TEXTS[4], ""])
    assert not vectors[[0, 2]].any() and vectors[1].any()
    assert text.encode(model, ["", ""]).shape == (2, 384)
    assert text.encode(model, []).shape == (0, 384)


def test_progress_counts_every_text_once(model: Any):
    steps: list[int] = []
    text.encode(model, [*TEXTS, ""], steps.append)
    assert sum(steps) == len(TEXTS)


def test_a_model_that_is_not_there_is_named_with_what_to_do(tmp_path: Path):
    with pytest.raises(
        BadSettings, match=r"text\.model is .* which cannot be loaded .*Use 'builtin:all-MiniLM-L6-v2'"
    ):
        text.load_model(Text(model=str(tmp_path)))


# --- texts and keys -------------------------------------------------------------------------------------


def test_title_and_description_make_one_text_and_missing_ones_none():
    table = pd.DataFrame({"title": ["A", None, "C", None], "description": ["one", "two", None, None]})
    assert text.catalogue_texts(table) == ["A. one", "two", "C", ""]


def test_a_model_s_key_tells_model_revision_and_truncation_apart():
    keys = {
        text.model_key(settings)
        for settings in (
            SETTINGS,
            Text(model="m", max_tokens=24),
            Text(revision="2", max_tokens=24),
            Text(max_tokens=25),
        )
    }
    assert len(keys) == 4


# --- the cache ------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A model that is quick; what it was asked to encode, call by call."""
    calls: list[list[str]] = []

    def encode(model: Any, texts: Sequence[str], progress: Any = None) -> np.ndarray:
        calls.append(list(texts))
        return np.stack([vector_of(entry) for entry in texts])

    monkeypatch.setattr(text, "load_model", lambda settings: None)
    monkeypatch.setattr(text, "encode", encode)
    return calls


def vector_of(entry: str) -> np.ndarray:
    return np.random.default_rng(list(entry.encode())).normal(size=6).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"), tmp_path / "scratch")


def test_a_second_day_encodes_only_what_is_new_or_changed(store: Store, asked: list[list[str]]):
    first = text.cached_vectors(store, SETTINGS, ["b", "a", "", "a"])
    assert (first.encoded, first.reused) == (2, 0)
    second = text.cached_vectors(store, SETTINGS, ["a", "b", "c"])
    assert (second.encoded, second.reused) == (1, 2)
    third = text.cached_vectors(store, SETTINGS, ["c", "a!", ""])
    assert (third.encoded, third.reused) == (1, 1)
    assert asked == [["a", "b"], ["c"], ["a!"]]
    for found, texts in ((first, ["b", "a", ""]), (second, ["c", "b", "a"]), (third, ["a!", "c"])):
        expected = [vector_of(entry) if entry else np.zeros(6, np.float32) for entry in texts]
        assert found.matrix(texts).tobytes() == np.stack(expected).tobytes()


def test_another_model_or_code_shares_nothing(
    store: Store, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
):
    text.cached_vectors(store, SETTINGS, ["a"])
    text.cached_vectors(store, Text(max_tokens=25), ["a"])
    assert asked == [["a"], ["a"]]
    monkeypatch.setattr(text, "code_fingerprint", lambda module: "another version of a library")
    assert text.cached_vectors(store, SETTINGS, ["a"]).encoded == 1
    assert text.cached_vectors(store, SETTINGS, ["a"]).encoded == 0


def test_what_else_the_cache_holds_does_not_decide_the_shape(store: Store, asked: list[list[str]]):
    """A catalogue without any text has the same matrix beside a full cache as beside an empty one."""
    empty = text.cached_vectors(store, SETTINGS, ["", ""])
    assert asked == []
    text.cached_vectors(store, SETTINGS, ["a"])
    beside = text.cached_vectors(store, SETTINGS, ["", ""])
    assert empty.width == beside.width
    assert empty.matrix(["", ""]).tobytes() == beside.matrix(["", ""]).tobytes()


@pytest.mark.parametrize("damaged", ["texts.parquet", "vectors.npy", "manifest.json"])
def test_a_damaged_segment_is_encoded_anew_and_mended(
    damaged: str, store: Store, asked: list[list[str]], capsys: pytest.CaptureFixture[str]
):
    text.cached_vectors(store, SETTINGS, ["a", "b"])
    (path,) = Path(store.root).rglob(damaged.replace(".", ".*", 1) if damaged != "manifest.json" else damaged)
    path.write_bytes(path.read_bytes()[:-3])
    again = text.cached_vectors(store, SETTINGS, ["a", "b"])
    assert (again.encoded, again.reused) == (2, 0)
    assert "Its texts are encoded anew" in capsys.readouterr().out
    mended = text.cached_vectors(store, SETTINGS, ["a", "b"])
    assert (mended.encoded, mended.reused) == (0, 2)
    assert mended.matrix(["a", "b"]).tobytes() == np.stack([vector_of("a"), vector_of("b")]).tobytes()


# --- no text at all -------------------------------------------------------------------------------------


def test_the_random_model_tells_titles_apart_and_says_nothing_of_them(tmp_path: Path):
    store = Store(str(tmp_path / "store"), str(tmp_path / "scratch"))
    found = text.cached_vectors(store, Text(model=text.RANDOM), [*TEXTS, ""])
    vectors = found.matrix([*TEXTS, ""])
    assert np.linalg.norm(vectors[:-1], axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-5)
    assert not vectors[-1].any()
    # "Ferry" and "Ferry." mean the same, and are as far apart as any two: 1/sqrt(384) is a cosine's deviation.
    cosines = (vectors[:-1] @ vectors[:-1].T)[np.triu_indices(len(TEXTS), 1)]
    assert np.abs(cosines).max() < 0.25
    again = text.cached_vectors(store, Text(model=text.RANDOM), TEXTS[::-1]).matrix(TEXTS)
    assert again.tobytes() == vectors[:-1].tobytes()
