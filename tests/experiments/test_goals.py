"""The page of goals: every figure is that of a CSV, and what has none says so."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from audiorec.chain import CHAIN
from audiorec.experiments.pages import COLUMNS
from benchmarks.goals import RESULTS, Line, goals, main, page

SOURCES = ("movietweetings", "online_retail", "simulation", "ciao")


def write_table(path: Path, table: str, figures: dict[tuple[str, str, str, str], tuple[float, ...]]) -> None:
    """Rows of a CSV by panel, model, segment and metric: value, low, high, users; a value alone is a seed's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(COLUMNS)
        for key, (value, *rest) in figures.items():
            interval = [*rest, "mean"] if rest else ["", "", 0, 1]
            writer.writerow([path.parent.name, table, *key, value, *interval])


RATES = {
    "2T-HGNN": 0.5,
    "2T": 0.6,
    "popularity, recent": 0.4,
    "popularity, whole window": 0.35,
    "EASE": 0.3,
    "ALS": 0.2,
    "LLM-KNN": 0.1,
    "oracle": 0.8,
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """One world for all sources. The best rival is recent popularity; of cold users, EASE."""
    flat = (0.0, 1.0, 100)
    for source in SOURCES:
        found: dict[tuple[str, str, str, str], tuple[Any, ...]] = {
            ("known", model, segment, "HR@10"): (rate, *flat)
            for model, rate in RATES.items()
            for segment in ("all", "warm", "cold", "tail")
        }
        found["known", "EASE", "cold", "HR@10"] = (0.49, *flat)
        for model, mrr, cover in (("2T-HGNN", 0.1, 0.7), ("popularity, recent", 0.2, 0.2)):
            found["known", model, "all", "MRR"] = (mrr, *flat)
            found["known", model, "all", "coverage@100"] = (cover,)
        for model, rate in (("2T-HGNN", 0.05), ("LLM-KNN", 0.04)):
            found["full", model, "never streamed", "HR@10"] = (rate, *flat)
        found |= {
            ("known", "2T-HGNN", "all", "HR@10 less popularity, recent"): (0.1, 0.02, 0.18, 900),
            ("known", "2T-HGNN", "warm", "HR@10 less popularity, recent"): (0.1, -0.01, 0.21, 800),
            ("known", "2T-HGNN", "cold", "HR@10 less popularity, recent"): (0.1, 0.05, 0.15, 100),
            ("known", "2T-HGNN", "cold", "HR@10 less EASE"): (0.01, -0.03, 0.05, 100),
        }
        write_table(tmp_path / source / "table2.csv", "table2", found)
    for share, (value, low, high) in {"0.05": (0.03, 0.01, 0.05), "0.01": (-0.02, -0.04, 0.0)}.items():
        found = {
            ("known", "2T-HGNN", "all", f"HR@10 less {other}"): (value, low, high, 900)
            for other in ("2T", "popularity, recent", "popularity, whole window")
        }
        found["known", "popularity, recent", "all", "HR@10"] = (0.3, *flat)
        found["known", "popularity, whole window", "all", "HR@10"] = (0.4, *flat)
        write_table(tmp_path / "simulation" / "scarcity.csv", f"scarcity {share}", found)
    return tmp_path


def line(lines: list[Line], goal: str, data: str) -> Line:
    (found,) = [one for one in lines if one.goal.startswith(goal) and one.data == data]
    return found


def test_figures_and_verdicts_by_hand(results: Path):
    lines = list(goals(results))
    for source in ("MovieTweetings", "Online Retail", "Simulation"):
        everybody = line(lines, "HR@10 above the best rival's, interval without 0 (known, all)", source)
        assert everybody.figure == "+0.100 [+0.020, +0.180] against popularity, recent, 900 users"
        assert everybody.reached is True
        assert (
            line(lines, "HR@10 above the best rival's, interval without 0 (known, warm)", source).reached
            is False
        )
        assert line(lines, "MRR", source) == Line(
            "MRR not under that rival's (known, all)", source, "0.100, popularity, recent 0.200", False
        )
        cover = line(lines, "coverage", source)
        assert (cover.figure, cover.reached) == (
            "70.0%, popularity, recent 20.0%",
            True,
        )  # three times, not 0.8
        tail = line(lines, "tail", source)
        assert (tail.figure, tail.reached) == ("0.500, EASE 0.300", True)
    # Three of 100 users each, half width 0.04: 0.04 / sqrt(3) = 0.023 around 0.01.
    cold = line(lines, "cold", "all three")
    assert (cold.figure, cold.reached) == ("+0.010 [-0.013, +0.033], 300 users", True)
    assert line(lines, "HR@10 not under popularity", "Ciao").figure == "0.500, popularity, recent 0.400"
    assert line(lines, "titles never", "Ciao").figure == "0.050, text 0.040"
    oracle = line(lines, "80%", "Simulation")
    assert (oracle.figure, oracle.reached) == ("62%", False)
    assert line(lines, "5% of the pairs kept: ahead of 2T", "Simulation").reached is True
    popular = line(lines, "5% of the pairs kept: ahead of popularity", "Simulation")
    assert popular.figure == "+0.030 [+0.010, +0.050] against popularity, whole window, 900 users"
    assert line(lines, "1% of the pairs kept: ahead of 2T", "Simulation").reached is False


def test_what_has_no_figure_says_so(results: Path, tmp_path_factory: pytest.TempPathFactory):
    lines = list(goals(results))
    assert line(lines, "5% of the pairs kept: ahead of 2T", "Online Retail").reached is None
    nothing = list(goals(tmp_path_factory.mktemp("empty")))
    assert {one.figure for one in nothing} == {"not measured yet"}
    assert {one.goal for one in nothing} == {one.goal for one in lines}


def test_a_segment_without_users_has_no_figure(results: Path):
    path = results / "ciao" / "table2.csv"
    kept = [row for row in path.read_text().splitlines() if "never streamed" not in row]
    empty = "ciao,table2,full,2T-HGNN,never streamed,HR@10,,,,0,mean"
    path.write_text("\n".join([*kept, empty]) + "\n")
    assert line(list(goals(results)), "titles never", "Ciao").figure == "not measured yet"


def test_speed_is_that_of_the_same_settings(results: Path):
    (results / "hgnn_training.csv").write_text(
        "nodes,batch,variant,edges_per_s,ratio_to_pyg\n"
        '25000,256,ours,900,12.34\n25000,256,pyg,70,1\n25000,256,"ours, not balanced",9,1\n25000,8192,ours,9,9.9\n'
    )
    lines = list(goals(results))
    quick = line(lines, "HGNN training ten times PyG's loader at batch 256", "planted graph, 25,000 nodes")
    assert (quick.figure, quick.reached) == ("12.3 times", True)
    assert (
        line(
            lines, "HGNN training ten times PyG's loader at batch 8192", "planted graph, 25,000 nodes"
        ).reached
        is False
    )
    costs = results / "movietweetings" / "run.costs.csv"
    rows = [f"{task},{590.5 if task == 'extract' else 1},9" for task in CHAIN]
    costs.write_text("\n".join(["task,seconds,peak_mb", *rows]) + "\n")
    run = line(list(goals(results)), "a whole standard run", "MovieTweetings")
    total = 590.5 + len(CHAIN) - 1
    assert (run.figure, run.reached) == (f"{total:,.0f} s, the sum of its tasks", total <= 600)
    costs.write_text("\n".join(["task,seconds,peak_mb", *rows[:-1]]) + "\n")
    assert line(list(goals(results)), "a whole standard run", "MovieTweetings").reached is None


def test_the_committed_page_is_what_the_committed_figures_say():
    assert (RESULTS / "goals.md").read_text(encoding="utf-8") == page(list(goals(RESULTS)))


def test_check_compares_and_writes_nothing(results: Path, monkeypatch: pytest.MonkeyPatch):
    command = ["goals", "--results", str(results)]
    monkeypatch.setattr("sys.argv", [*command, "--check"])
    assert main() == 1
    assert not (results / "goals.md").exists()
    monkeypatch.setattr("sys.argv", command)
    assert main() == 0
    monkeypatch.setattr("sys.argv", [*command, "--check"])
    assert main() == 0
