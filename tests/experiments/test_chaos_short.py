"""The short form of `make chaos`: the experiments that need no service, with few repetitions."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import benchmarks.chaos.__main__ as chaos
from benchmarks.chaos.__main__ import EXPERIMENTS, main
from benchmarks.chaos.report import Experiment, Finished, Row

SHORT = ("bit_rot", "upgrade", "kill", "fault_points", "schema")


def test_every_criterion_of_the_short_form_is_held_and_a_second_run_repeats_nothing(tmp_path: Path, capsys):
    arguments = [
        "--short",
        "--only",
        *SHORT,
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path / "out"),
    ]
    code = main(arguments)
    said = capsys.readouterr().out
    assert code == 0, said
    with (tmp_path / "out" / "chaos.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["experiment", "criterion", "figure", "passed"]
    assert {row["experiment"] for row in rows} == set(SHORT)
    assert {row["passed"] for row in rows} == {"true"}
    page = (tmp_path / "out" / "chaos.md").read_text(encoding="utf-8")
    assert f"{len(rows)} of {len(rows)} criteria held" in page
    assert "## Not run" in page and "- 20. A hundred users forgotten" in page

    assert main(arguments) == 0
    assert capsys.readouterr().out.count("kept from an earlier run") == len(SHORT)


def test_two_lanes_run_side_by_side_and_end_on_one_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(chaos, "LANES", (("upgrade",),))
    arguments = ["--short", "--only", "upgrade", "schema", "--work", str(tmp_path / "work")]
    arguments += ["--out", str(tmp_path / "out")]
    code = main(arguments)
    assert code == 0, capfd.readouterr()
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"lane-0", "lane-1", "results"}
    with (tmp_path / "out" / "chaos.csv").open(encoding="utf-8") as file:
        assert {row["experiment"] for row in csv.DictReader(file)} == {"upgrade", "schema"}
    capfd.readouterr()
    assert main(arguments) == 0
    assert capfd.readouterr().out.count("kept from an earlier run") == 2


def test_every_experiment_is_in_one_lane_and_two_lanes_have_an_airflow():
    lanes = chaos.in_lanes(EXPERIMENTS)
    assert sorted(one.name for lane in lanes for one in lane) == sorted(one.name for one in EXPERIMENTS)
    assert len(lanes) == 3
    assert {one.number for lane in lanes[:2] for one in lane} == {5, 13, 14, 18, 23}


def test_what_broke_off_in_its_lane_is_not_held(tmp_path: Path):
    [finished] = chaos.collect(EXPERIMENTS[:1], tmp_path, short=True)
    assert not finished.passed and "broke off" in finished.rows[0].figure


def test_names_and_numbers_are_unique():
    assert (
        len({one.name for one in EXPERIMENTS}) == len({one.number for one in EXPERIMENTS}) == len(EXPERIMENTS)
    )


def test_a_criterion_that_is_not_held_is_kept_as_such(tmp_path: Path):
    rows = [Row("all of them", "9 of 10", False, "the tenth"), Row("none", "0", True)]
    done = Finished("x", 1, "X", 7, "f", 1.5, "abc", rows)
    done.keep(tmp_path / "x.json")
    assert Finished.read(tmp_path / "x.json") == done and not done.passed
    (tmp_path / "x.json").write_text("{")
    assert Finished.read(tmp_path / "x.json") is None


def test_other_parameters_are_another_experiment():
    one = EXPERIMENTS[0]
    other = Experiment(one.name, one.number, one.purpose, one.seed + 1, one.run)
    assert len({one.fingerprint(False), one.fingerprint(True), other.fingerprint(False)}) == 3
    assert one.fingerprint(False) == one.fingerprint(False)
