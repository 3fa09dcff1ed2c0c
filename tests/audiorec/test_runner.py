"""A task from the command line: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from audiorec.errors import BadSettings, ExitCode
from audiorec.runner import Resolver, main, run_task
from audiorec.settings import load_settings

if TYPE_CHECKING:
    from conftest import Chain


def call(tiny: Any, settings: Any, monkeypatch: pytest.MonkeyPatch, task: str, *arguments: str) -> None:
    for name, value in tiny.environment(settings).items():
        monkeypatch.setenv(name, value)
    main(task, ["--as-of", str(tiny.as_of), "--profile", "smoke", *arguments])


def test_a_result_is_printed_last_and_written_where_it_is_wanted(
    tiny_chain: Chain,
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setenv("AUDIOREC_RESULT", str(tmp_path / "result.json"))
    call(tiny, tiny_chain.settings, monkeypatch, "embed_music")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("RESULT ")
    result = json.loads(last.removeprefix("RESULT "))
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["state"] == "up_to_date"
    assert result["fingerprint"] == tiny_chain.results["embed_music"]["fingerprint"]


def test_an_input_that_is_not_there_is_named_with_the_command_that_makes_it(
    tiny_source: Path,
    tiny: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    settings = tiny.settings(tiny_source, tmp_path)
    with pytest.raises(SystemExit) as ended:
        call(tiny, settings, monkeypatch, "build_graph")
    assert ended.value.code == ExitCode.BAD_SETTINGS
    message = capsys.readouterr().err
    assert "extract has no result for 2026-11-20" in message and "it never ran" in message
    assert "Run `python -m tasks.extract --as-of 2026-11-20` first" in message


def test_a_result_of_other_settings_is_said_to_be_there(tiny_chain: Chain, tiny: Any, tmp_path: Path):
    store = {"uri": tiny_chain.settings.store.uri, "scratch": str(tmp_path)}
    other = tiny.settings(Path(tiny_chain.settings.source.uri), tmp_path, store=store, graph={"top_k": 3})
    with pytest.raises(
        BadSettings, match=r"build_graph has no result .* 1 version\(s\) of it exist, but with other"
    ):
        run_task("train_hgnn", other, tiny_chain.as_of)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("AUDIOREC_HGNN__SEDE", "1", "hgnn.sede: Extra inputs are not permitted"),
        ("AUDIOREC_SOURCE__URI", "/no/such/folder", "source.uri is '/no/such/folder', which does not exist"),
    ],
)
def test_a_wrong_setting_ends_with_the_code_that_is_never_retried(
    variable: str,
    value: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    monkeypatch.setenv("AUDIOREC_STORE__SCRATCH", str(tmp_path))
    monkeypatch.setenv("AUDIOREC_STORE__URI", str(tmp_path / "store"))
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        main("extract", ["--as-of", "2026-11-20"])
    assert ended.value.code == ExitCode.BAD_SETTINGS
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["--as-of", "20261120x"], ["--as-of", "2026-11-20", "--profile", "quick"]]
)
def test_a_wrong_command_line_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main("extract", arguments)
    assert ended.value.code == 2
    assert "usage: python -m tasks.extract" in capsys.readouterr().err


def test_a_run_can_be_held_to_one_extract(tiny_chain: Chain, tiny: Any, tmp_path: Path):
    """With the fingerprint handed on, no task looks at the source again: it may change under a run."""
    gone = tiny.settings(tmp_path / "gone", tmp_path, store={"uri": tiny_chain.settings.store.uri})
    fingerprint = tiny_chain.results["extract"]["fingerprint"]
    again = run_task("embed_music", gone, tiny_chain.as_of, extract=fingerprint)
    assert again["state"] == "up_to_date"
    assert again["fingerprint"] == tiny_chain.results["embed_music"]["fingerprint"]


def test_the_fingerprint_of_a_day_is_its_own(tiny_source: Path, tiny: Any, tmp_path: Path):
    from datetime import timedelta

    settings = tiny.settings(tiny_source, tmp_path)
    one, other = Resolver(settings, tiny.as_of), Resolver(settings, tiny.as_of - timedelta(days=1))
    assert one.fingerprint("extract") != other.fingerprint("extract")


def test_every_task_has_resources():
    from audiorec.chain import TASKS

    assert set(load_settings().resources) == set(TASKS)
