"""The short form of `make chaos`: the experiments that need no service, with few repetitions."""

from __future__ import annotations

import csv
from pathlib import Path

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
