"""The suite of a co-listening graph: a right one passes, each planted fault is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.sparse as sp

from audiorec.errors import BadData
from expectations import graph
from expectations.graph import check_graph


@dataclass(frozen=True)
class Csr:
    indptr: np.ndarray
    indices: np.ndarray
    users: np.ndarray


def csr(dense: list[list[int]]) -> Csr:
    matrix = sp.csr_matrix(np.array(dense))
    return Csr(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data.astype(np.int32))


def right() -> dict[str, Csr]:
    """Three audiobooks, two podcasts; the numbers are users."""
    between = [[1, 0], [0, 2], [4, 0]]
    return {
        "audiobook_audiobook": csr([[0, 3, 0], [3, 0, 1], [0, 1, 0]]),
        "audiobook_podcast": csr(between),
        "podcast_audiobook": csr(np.transpose(between).tolist()),
        "podcast_podcast": csr([[0, 5], [5, 0]]),
    }


def test_a_right_graph_passes():
    assert check_graph("train", right()) == []


def test_isolated_titles_warn():
    """Two of three audiobooks have no neighbour of either type: 2/3 is over a half."""
    relations = right() | {
        "audiobook_audiobook": csr([[0, 0, 0]] * 3),
        "audiobook_podcast": csr([[1, 0], [0, 0], [0, 0]]),
        "podcast_audiobook": csr([[1, 0, 0], [0, 0, 0]]),
    }
    (warning,) = check_graph("train", relations)
    assert str(warning).startswith(
        "DQ-GRAPH graph train.audiobook: found 2 of 3 audiobooks without a neighbour"
    )


def without_edges() -> dict[str, Csr]:
    titles = {"audiobook": 3, "podcast": 2}
    return {name: csr(np.zeros((len(r.indptr) - 1, titles[name.split("_")[1]]), int).tolist())
            for name, r in right().items()}  # fmt: skip


FAULTS: dict[str, tuple[Callable[[], dict[str, Csr]], str]] = {
    "no edge": (without_edges, "no edge at all"),
    "self-loop": (
        lambda: right() | {"podcast_podcast": csr([[1, 5], [5, 0]])},
        r"1 title\(s\) joined to themselves",
    ),
    "one way": (
        lambda: right() | {"audiobook_audiobook": csr([[0, 3, 0], [0, 0, 1], [0, 1, 0]])},
        "audiobook_audiobook: found edges that differ between the two directions",
    ),
    "other users on the way back": (
        lambda: right() | {"podcast_audiobook": csr([[1, 0, 4], [0, 3, 0]])},
        "audiobook_podcast: found edges that differ",
    ),
    "no users": (
        lambda: (
            right() | {"podcast_podcast": replace(csr([[0, 5], [5, 0]]), users=np.array([0, 0], np.int32))}
        ),
        r"2 edge\(s\) with fewer than 1 user",
    ),
    "no such title": (
        lambda: (
            right() | {"podcast_podcast": replace(csr([[0, 5], [5, 0]]), indices=np.array([2, 0], np.int32))}
        ),
        r"1 neighbour\(s\) that are no title",
    ),
    "listed twice": (
        lambda: (
            right()
            | {"podcast_podcast": Csr(np.array([0, 2, 4]), np.array([1, 1, 0, 0]), np.array([5, 5, 5, 5]))}
        ),
        r"2 neighbour\(s\) listed twice",
    ),
    "bounds past the end": (
        lambda: right() | {"podcast_podcast": Csr(np.array([0, 1, 9]), np.array([1, 0]), np.array([5, 5]))},
        r"1 row\(s\) whose bounds go back or past the end",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_stops_and_is_named(fault: str):
    relations, words = FAULTS[fault]
    with pytest.raises(BadData, match=words):
        check_graph("train", relations())


def test_a_direction_without_its_counterpart_is_refused():
    relations = right()
    del relations["podcast_audiobook"]
    with pytest.raises(ValueError, match="audiobook_podcast but not podcast_audiobook"):
        check_graph("train", relations)


def test_large_graphs_are_checked_in_blocks(monkeypatch: pytest.MonkeyPatch):
    """Blocks of 3 edges find what one block finds, also across a border."""
    rng = np.random.default_rng(1)
    upper = np.triu(rng.integers(0, 4, (30, 30)), 1)
    relations = {"podcast_podcast": csr((upper + upper.T).tolist())}
    whole = graph.suite("train", relations).metrics
    monkeypatch.setattr(graph, "BLOCK_EDGES", 3)
    assert graph.suite("train", relations).metrics == whole
    twice = Csr(np.array([0, 4, 8]), np.array([1, 1, 1, 1, 0, 0, 0, 0]), np.ones(8, np.int32))
    assert graph.suite("train", {"podcast_podcast": twice}).metrics["podcast_podcast.repeated_edges"] == 6
