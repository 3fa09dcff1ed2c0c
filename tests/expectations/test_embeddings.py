"""The suite of an embedding matrix: what it measures by hand, what stops, what warns."""

from __future__ import annotations

import numpy as np
import pytest

from audiorec.errors import BadData
from expectations.embeddings import check_embeddings, measure


def healthy(rows: int = 200, width: int = 16, seed: int = 1) -> np.ndarray:
    matrix = np.random.default_rng(seed).normal(size=(rows, width))
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def test_figures_of_four_rows_by_hand():
    """Unit rows e1, e1, e2 and a row of zeros. Pairs of the three: cosines 1, 0, 0, so a mean of 1/3.

    Centred rows (1/3, -1/3), (1/3, -1/3), (-2/3, 2/3) lie on one line: effective rank 1.
    """
    found = measure(np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.float32))
    assert (found["rows"], found["empty_rows"], found["non_finite_rows"]) == (4, 1, 0)
    assert found["empty_row_share"] == 1 / 4
    assert found["mean_cosine"] == pytest.approx(1 / 3)
    assert found["effective_rank"] == pytest.approx(1)


def test_the_effective_rank_of_equal_axes_is_their_number():
    """+-e1, +-e2, +-e3, +-e4: mean 0, four equal singular values, entropy log 4."""
    axes = np.concatenate([np.eye(4), -np.eye(4)])
    assert measure(axes)["effective_rank"] == pytest.approx(4)


def test_the_mean_cosine_is_that_of_all_pairs():
    matrix = healthy(50) * np.linspace(0.5, 3, 50)[:, None]
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[~np.eye(50, dtype=bool)]
    assert measure(matrix)["mean_cosine"] == pytest.approx(pairs.mean(), abs=1e-6)


def test_healthy_vectors_pass():
    assert check_embeddings("titles", healthy(), unit_norm=True) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_row_that_is_not_finite_stops(value):
    matrix = healthy()
    matrix[7, 3] = value
    with pytest.raises(BadData, match=r"DQ-EMBEDDINGS titles: found 1 of 200 rows with NaN or inf.*--force"):
        check_embeddings("titles", matrix, unit_norm=True)


def test_a_length_other_than_one_stops_only_where_it_must_be_one():
    matrix = healthy()
    matrix[7] *= 1.1
    with pytest.raises(BadData, match=r"a row whose length is off by 0\.1"):
        check_embeddings("titles", matrix, unit_norm=True)
    assert check_embeddings("artists", matrix, unit_norm=False) == []


def test_half_precision_is_of_length_one_enough():
    assert check_embeddings("titles", healthy().astype(np.float16), unit_norm=True) == []


def collapsed_to_a_point() -> np.ndarray:
    matrix = np.ones((200, 16)) + 0.01 * np.random.default_rng(1).normal(size=(200, 16))
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def collapsed_to_a_line() -> np.ndarray:
    return np.outer(np.resize([1.0, -1.0], 200), np.eye(16)[0])


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (collapsed_to_a_point(), "a mean cosine of 1.000"),
        (collapsed_to_a_line(), "an effective rank of 1.00"),
    ],
)
def test_a_collapse_stops(matrix, words):
    with pytest.raises(BadData, match=words):
        check_embeddings("titles", matrix, unit_norm=True)


def test_narrow_vectors_warn():
    matrix = np.ones((200, 16)) * 0.9 + healthy().astype(float)
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    (warning,) = check_embeddings("titles", matrix, unit_norm=True)
    assert "a mean cosine of 0.9" in warning.found


def test_titles_without_text_warn_and_do_not_stop():
    matrix = healthy()
    matrix[:150] = 0
    (warning,) = check_embeddings("audiobook_text", matrix, unit_norm=True)
    assert str(warning).startswith("DQ-EMBEDDINGS audiobook_text: found 150 of 200 rows without a vector")
    (warning,) = check_embeddings("audiobook_text", np.zeros((200, 1), np.float32), unit_norm=True)
    assert "200 of 200 rows" in warning.found


def test_an_empty_matrix_warns():
    (warning,) = check_embeddings("podcast_text", np.zeros((0, 8), np.float32), unit_norm=True)
    assert "0 of 0 rows" in warning.found


def test_a_memory_mapped_matrix_is_measured_alike(tmp_path):
    np.save(tmp_path / "m.npy", healthy(70_000, 8))
    mapped = np.load(tmp_path / "m.npy", mmap_mode="r")
    assert measure(mapped) == pytest.approx(measure(np.array(mapped)))
