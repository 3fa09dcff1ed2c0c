"""Wrong and poor inputs to `audiorec experiment` and `audiorec generate`: an answer that fits on a screen.

Either the command ends with a message that says what was found and what was expected, and the exit code of
audiorec/errors.py; or it writes the table, and the page names what the source lacks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from typer.testing import CliRunner

from audiorec.cli import app
from audiorec.errors import AudiorecError, BadData, BadSettings, Busy, ExitCode
from audiorec.experiments.cells import Runner, failure, needed
from audiorec.experiments.command import describe
from audiorec.runner import run_task
from audiorec.settings import as_toml, load_settings

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("elsewhere")]

TABLES = (
    "users",
    "tracks",
    "podcasts",
    "audiobooks",
    "music_events",
    "podcast_events",
    "audiobook_events",
)
_LISTENER = """
    SELECT user_id FROM audiobook_events WHERE event = 'stream' AND seconds_played > 60
    GROUP BY user_id ORDER BY COUNT(DISTINCT audiobook_id) DESC, user_id LIMIT 1
"""
SOURCES: dict[str, list[str]] = {
    "no_podcasts": ["DELETE FROM podcasts", "DELETE FROM podcast_events"],
    # No music, no signals, no text, no durations: each of them is named for itself.
    "bare": [
        "DELETE FROM tracks",
        "DELETE FROM music_events",
        "DELETE FROM audiobook_events WHERE lower(trim(event)) != 'stream'",
        "DELETE FROM podcast_events WHERE lower(trim(event)) != 'stream'",
        "UPDATE audiobooks SET title = NULL, description = NULL",
        "UPDATE podcasts SET title = NULL, description = NULL",
        "UPDATE podcast_events SET seconds_played = 600 WHERE seconds_played >= 30",
        "UPDATE audiobook_events SET seconds_played = 600 WHERE seconds_played >= 30",
    ],
    "one_user": [
        f"DELETE FROM users WHERE user_id != ({_LISTENER})",
        *(
            f"DELETE FROM {kind}_events WHERE user_id NOT IN (SELECT user_id FROM users)"
            for kind in ("music", "podcast", "audiobook")
        ),
    ],
}


@pytest.fixture(scope="module")
def place(tiny_source: Path, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Sources with something taken away, settings for them with one store, and a way to call the command."""
    work = tmp_path_factory.mktemp("wrong")

    class Place:
        pages = work / "pages"

        @staticmethod
        def source(name: str) -> Path:
            folder = work / name
            if folder.exists():
                return folder
            folder.mkdir()
            connection = duckdb.connect()
            for table in TABLES:
                flat = tiny_source / f"{table}.parquet"
                files = flat if flat.exists() else tiny_source / table / "*" / "*.parquet"
                connection.execute(f"CREATE TABLE {table} AS SELECT * FROM read_parquet('{files}')")
            for change in SOURCES.get(name, []):
                connection.execute(change)
            for table in TABLES:
                connection.execute(f"COPY {table} TO '{folder}/{table}.parquet' (FORMAT parquet)")
            return folder

        @staticmethod
        def settings(source: Path, **groups: dict[str, Any]) -> Path:
            quick = {
                "rivals": {
                    "models": ["LLM-KNN", "item-kNN", "ALS"],
                    "als_factors": 4,
                    "als_regularization": [1.0],
                },
                "hgnn": {**tiny_groups("hgnn"), "max_epochs": 1},
                "two_tower": {**tiny_groups("two_tower"), "epochs": 1},
                "analysis": {"pairs": 300, "bootstrap": 20},
                # Nothing listens there: no test may write into an MLflow that somebody has running.
                "services": {"mlflow_port": 9},
                # Encoding takes seconds; where there is one user, no figure is left that text would change.
                "text": {"model": "builtin:random"} if source.name == "one_user" else {},
                **groups,
            }
            path = work / f"{source.name}.toml"
            path.write_text(as_toml(tiny.settings(source, work, **quick)))
            return path

        @classmethod
        def made(cls, name: str, table: str) -> str:
            """The page of a table, its tasks run in this process to spare their start; only then the command."""
            source = cls.source(name)
            settings, out = cls.settings(source), cls.pages / name
            wanted = describe(table, str(source), tiny.as_of, None, None, 1, out, None, settings)
            runner = Runner(wanted.experiment)
            for cell in wanted.cells:
                for task in needed(cell.task):
                    resolver = runner.resolver(cell)
                    if resolver.manifest(task) is None:
                        run_task(task, resolver.settings, tiny.as_of, extract=resolver.fingerprint("extract"))
            found = cls.call(
                table, "--source", str(source), "--settings", str(settings), "--out", str(out), "--seeds", "1"
            )
            assert found.exit_code == 0, found.output + found.stderr
            assert "not in MLflow" in found.output
            again = cls.call(
                table,
                "--source",
                str(source),
                "--settings",
                str(settings),
                "--out",
                str(out),
                "--seeds",
                "1",
                "--check",
            )
            assert again.exit_code == 0, again.output + again.stderr
            return (out / f"{table}.md").read_text()

        @staticmethod
        def call(name: str, *arguments: str, as_of: str = tiny.as_of.isoformat()) -> Any:
            return CliRunner().invoke(app, ["experiment", name, "--as-of", as_of, *arguments])

    def tiny_groups(group: str) -> dict[str, Any]:
        return dict(getattr(tiny.settings(tiny_source, work), group).model_dump())

    return Place


# -- sources that lack something: the table, with the missing parts named ----------------------------


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("no_podcasts", ["podcasts (the graph joins audiobooks alone)"]),
        ("bare", ["music events in the window", "weak signals of audiobooks", "text of audiobooks"]),
        ("one_user", ["0 users (0 warm, 0 cold", "Segments under 20 users say little: warm, cold, none"]),
    ],
)
def test_table_2_names_what_the_source_lacks(place: Any, source: str, named: list[str]):
    page = place.made(source, "table2")
    for words in named:
        assert words in page
    # In three panels and in the table of the long tail.
    assert page.count("| 2T-HGNN |") == 4 and page.count("| ALS |") == 4
    assert "nan" not in page.split("| command |")[0]


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (
            "no_podcasts",
            ["podcasts before audiobooks: the source has no podcast events", "content types: podcast"],
        ),
        (
            "bare",
            [
                "content types: music: nobody streamed music in the window",
                "odds after a signal: the source has streams of audiobooks and no weak signals",
                "co-occurrence of signals: the source has streams of audiobooks and no weak signals",
                "similarity of titles: no streamed audiobook has a title or description",
                "durations: every stream has the same length",
                "| streams of the top 25% of users",
            ],
        ),
        ("one_user", ["withheld, too few users behind a figure"]),
    ],
)
def test_the_analysis_names_what_the_source_lacks(place: Any, source: str, named: list[str]):
    page = place.made(source, "analysis")
    for words in named:
        assert words in page
    # What is shown rests on five users or more, and names none.
    figures = pd.read_csv(place.pages / source / "analysis.csv", dtype={"seed": str})
    assert figures[figures["value"].notna()]["users"].min() >= 5 or source == "one_user"
    assert source != "one_user" or figures["value"].isna().all()
    users = pd.read_parquet(place.source(source) / "users.parquet")["user_id"]
    words = set(page.replace("|", " ").split()) | set(
        json.dumps(figures.to_dict("list")).replace('"', " ").split()
    )
    assert not words & set(users)


# -- inputs that make no sense: a message and an exit code -------------------------------------------

WRONG: dict[str, tuple[Callable[[Any], list[str]], int, str]] = {
    "unknown table": (
        lambda place: ["table9", "--source", str(place.source("bare"))],
        ExitCode.BAD_SETTINGS,
        "experiment 'table9' is unknown; expected one of table1, table2, table3, table4, scarcity, analysis",
    ),
    "no such source": (
        lambda place: ["analysis", "--source", "/nowhere/at/all"],
        ExitCode.BAD_SETTINGS,
        "source.uri is '/nowhere/at/all', which does not exist",
    ),
    "a setting that does not exist": (
        lambda place: [
            "table2",
            "--source",
            "SOURCE",
            "--settings",
            str(_file(place, "[hgnn]\nlayers = 3\n")),
        ],
        ExitCode.BAD_SETTINGS,
        "hgnn.layers: Extra inputs are not permitted (found 3)",
    ),
    "no seeds": (
        lambda place: ["table2", "--source", "SOURCE", "--seeds", "0"],
        2,
        "Invalid value for '--seeds'",
    ),
    "a window of words": (
        lambda place: ["analysis", "--source", "SOURCE", "--window-days", "some"],
        ExitCode.BAD_SETTINGS,
        "--window-days is 'some'; expected a number of days, or all",
    ),
    "a date before the data": (
        lambda place: ["table2", "--source", "SOURCE", "--as-of", "2020-01-01", "--settings", "SETTINGS"],
        ExitCode.BAD_DATA,
        "no audiobook was streamed up to 2020-01-01",
    ),
    "a date after the data": (
        lambda place: ["table2", "--source", "SOURCE", "--as-of", "2027-06-01", "--settings", "SETTINGS"],
        ExitCode.BAD_DATA,
        "no audiobook was streamed in the hold-out, 2027-05-27 to 2027-06-01, so there is nobody to judge: audiobooks of",
    ),
    "a hold-out longer than the data": (
        lambda place: ["table2", "--source", "SOURCE", "--holdout-days", "4000", "--settings", "SETTINGS"],
        ExitCode.BAD_DATA,
        "no audiobook was streamed before the split",
    ),
    "podcasts as the target where there are none": (
        lambda place: [
            *("table4", "--source", str(place.source("no_podcasts"))),
            *("--settings", str(place.settings(place.source("no_podcasts")))),
        ],
        ExitCode.BAD_DATA,
        "no audiobook was streamed up to",
    ),
}


def _file(place: Any, text: str) -> Path:
    path = place.source("bare").parent / "wrong.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("case", WRONG)
def test_wrong_inputs_to_experiment(place: Any, case: str):
    arguments, code, said = WRONG[case]
    source = place.source("bare")
    replaced = {"SOURCE": str(source), "SETTINGS": str(place.settings(source))}
    found = place.call(*[replaced.get(one, one) for one in arguments(place)])
    _one_screen(found, code, said)


def test_what_a_task_says_reaches_the_terminal(place: Any, tiny: Any):
    """A failure in a process of its own, as experiments run their tasks."""
    source = place.source("bare")
    settings = place.settings(source, graph={"min_users": 1_000_000})
    for task in ("extract", "embed_text"):
        run_task(task, load_settings(settings), tiny.as_of)
    _one_screen(
        place.call("analysis", "--source", str(source), "--settings", str(settings)),
        ExitCode.BAD_DATA,
        "BadData: build_graph: graph train failed 1 critical check(s):\n  DQ-GRAPH graph train: found no edge at all",
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "nope"], "preset 'nope' is unknown; expected one of"),
        (["--users", "-5"], "n_users: Input should be greater than or equal to 1 (found -5)"),
        (["--audiobooks", "0"], "n_audiobooks: Input should be greater than or equal to 2 (found 0)"),
        (["--last-day", "1999-01-01"], "last_day is 1999-01-01, expected a day in 2001-2200"),
    ],
)
def test_wrong_inputs_to_generate(tmp_path: Path, arguments: list[str], said: str):
    found = CliRunner().invoke(app, ["generate", str(tmp_path / "new"), *arguments])
    _one_screen(found, ExitCode.BAD_SETTINGS, said)
    assert not (tmp_path / "new").exists()


def test_generate_does_not_write_over_a_file(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    found = CliRunner().invoke(app, ["generate", str(tmp_path / "file"), "--preset", "tiny"])
    _one_screen(found, ExitCode.BAD_DATA, "is a file, expected a folder")
    assert (tmp_path / "file").read_text() == "mine"


def _one_screen(found: Any, code: int, said: str) -> None:
    assert found.exit_code == code, found.output + found.stderr
    assert said in found.stderr
    assert "Traceback" not in found.output + found.stderr
    assert len(found.stderr.splitlines()) <= 24


# -- how a task's end becomes an error ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "stderr", "kind", "said"),
    [
        (65, "noise: here\nBadData: no rows\n  and why\n", BadData, "extract: no rows\n  and why"),
        (78, "BadSettings: time is wrong", BadSettings, "extract: time is wrong"),
        (75, "Busy: held", Busy, "extract: held"),
        # An error that nobody expected: the end of its log, nothing made up.
        (
            1,
            "Traceback\nValueError: odd",
            AudiorecError,
            "extract ended with exit code 1; the end of its log:\ndone",
        ),
        (-9, "", AudiorecError, "extract was ended by signal 9 (SIGKILL); the end of its log:\ndone"),
        # A line of the log that looks like an error of another kind is not taken for the end.
        (
            78,
            "BadData: in passing",
            BadSettings,
            "extract ended with exit code 78; the end of its log:\ndone",
        ),
    ],
)
def test_the_error_of_a_task_by_its_exit_code(code: int, stderr: str, kind: type, said: str):
    error = failure("extract", code, "done\n", stderr)
    assert type(error) is kind
    assert str(error).startswith(said)
