"""A full disk is told as such, whoever met it: Python, or a library with errors of its own."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from small_source import AS_OF, clean_tables, settings_for, write_flat

from audiorec import runner
from audiorec.errors import BadData, ExitCode, is_disk_full
from audiorec.settings import as_toml


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError("131072 requested and 65536 written"), True),  # numpy
        (RuntimeError("IO Error: Could not write file: No space left on device"), True),  # DuckDB
        (caused(RuntimeError("could not save"), OSError(errno.ENOSPC, "")), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (ValueError("3 requested and none found"), False),
        (BadData("the note says: No space left on device"), False),
        (None, False),
    ],
)
def test_what_says_that_a_disk_is_full(error: Exception | None, full: bool):
    assert is_disk_full(error) is full


@pytest.mark.parametrize("full", [True, False])
def test_a_task_on_a_full_disk_ends_as_unavailable_and_any_other_error_stays_one(
    full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    settings = settings_for(write_flat(clean_tables(), tmp_path / "source"), tmp_path)
    (tmp_path / "scratch").mkdir()
    file = tmp_path / "settings.toml"
    file.write_text(as_toml(settings))

    def stopped(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC if full else errno.EIO, "it stopped")

    monkeypatch.setattr(runner, "run_task", stopped)
    arguments = ["--as-of", AS_OF.isoformat(), "--settings", str(file)]
    if not full:
        with pytest.raises(OSError, match="it stopped"):
            runner.main("extract", arguments)
        return
    with pytest.raises(SystemExit) as ended:
        runner.main("extract", arguments)
    said = capsys.readouterr().err
    assert ended.value.code == ExitCode.UNAVAILABLE
    assert "extract: the disk is full" in said
    assert "MiB free" in said and "audiorec gc" in said and str(tmp_path / "scratch") in said
