"""Each way a child can end, made to happen, and what a person is told about it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from datetime import date
from pathlib import Path

import psutil
import pytest

from audiorec import launcher
from audiorec.errors import ExitCode
from audiorec.settings import Settings, TaskResources, load_settings

AS_OF = date(2026, 11, 23)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Small limits, so that crossing them takes a second and not an hour."""
    return load_settings(
        store={"scratch": str(tmp_path / "scratch"), "uri": str(tmp_path / "store")},
        resources={
            "extract": {"memory_mb": 300, "timeout_minutes": 1.0, "threads": 3},
            "validate": {"memory_mb": 300, "timeout_minutes": 1.0},
            "promote": {"memory_mb": 300, "timeout_minutes": 1.5 / 60},
        },
    )


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """Run a piece of Python as if it were a task; returns (result or failure, lines)."""

    def call(code: str, task: str = "extract"):
        lines: list[str] = []
        program = textwrap.dedent(code)
        monkeypatch.setattr(
            launcher,
            "task_command",
            lambda *_, **__: [sys.executable, "-X", "faulthandler", "-c", program],
        )
        try:
            return launcher.run_task(task, AS_OF, settings, emit=lines.append), lines
        except launcher.TaskFailed as failure:
            return failure, lines

    return call


GOOD = """
    import json, os, pathlib
    result = {"task": "extract", "as_of": "2026-11-23", "state": "done", "manifest": "store/m.json",
              "fingerprint": "ab12", "counts": {"interactions": 1234567, "share": 0.25}, "verdict": None,
              "links": {"Data Docs": "http://docs"}, "seconds": 1.5, "peak_mb": 90, "colour": "blue"}
    print("working")
    pathlib.Path(os.environ["AUDIOREC_RESULT"]).write_text(json.dumps(result))
    print("RESULT " + json.dumps(result))
"""


def test_a_good_end_returns_the_result_and_shows_it_as_a_table(run):
    result, lines = run(GOOD)
    assert isinstance(result, launcher.TaskResult)
    assert result.counts == {"interactions": 1234567, "share": 0.25}
    assert result.links == {"Data Docs": "http://docs"}
    assert result.to_dict()["colour"] == "blue"  # keys that we do not know are handed on
    assert lines[1:] == ["working"]  # the RESULT line is not repeated
    assert result.table().splitlines() == [
        "extract of 2026-11-23: done in 1.5 s, peak 90 MiB",
        "  interactions  1,234,567",
        "  share         0.25",
        "  Data Docs     http://docs",
        "  manifest      store/m.json",
    ]


def test_no_result_is_a_failure_although_the_exit_code_is_0(run):
    failure, _ = run("print('all well')")
    assert (failure.code, failure.retryable) == ("NO-RECEIPT", False)
    assert "its result is missing" in str(failure)


def test_a_result_without_a_required_key_is_a_failure(run):
    failure, _ = run("import os; open(os.environ['AUDIOREC_RESULT'], 'w').write('{\"task\": \"x\"}')")
    assert failure.code == "NO-RECEIPT"
    assert "['as_of', 'fingerprint', 'manifest', 'state'] are missing" in str(failure)


def test_kill_9(run):
    failure, _ = run(
        "import os, signal; print('at step 7', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert isinstance(failure, launcher.RetryableFailure)
    assert (failure.code, failure.signal_name, failure.exit_code) == ("TASK-KILLED", "SIGKILL", 137)
    message = str(failure)
    for part in (
        "extract of 2026-11-23",
        "SIGKILL",
        "| at step 7",
        "of 300 MiB",
        "docs/runbooks/TASK-KILLED.md",
    ):
        assert part in message


def test_a_shells_137_is_the_same(run):
    failure, _ = run("raise SystemExit(137)")
    assert (failure.code, failure.signal_name) == ("TASK-KILLED", "SIGKILL")


def test_a_null_read_is_an_ordinary_failure_with_its_stack_in_the_log(run):
    failure, lines = run("import ctypes\ndef deep():\n    ctypes.string_at(0)\ndeep()")
    assert isinstance(failure, launcher.RetryableFailure)
    assert (failure.code, failure.signal_name) == ("TASK-CRASH", "SIGSEGV")
    assert any("Segmentation fault" in line for line in lines)
    assert any("in deep" in line for line in lines)


def test_a_memory_hog_is_ended_with_a_code_of_its_own(run):
    failure, lines = run("""
        import time
        held = []
        while True:
            held.append(bytearray(20_000_000))
            print(len(held), flush=True)
            time.sleep(0.05)
    """)
    assert isinstance(failure, launcher.FinalFailure)
    assert (failure.code, failure.exit_code) == ("TASK-OOM", ExitCode.MEMORY)
    assert failure.peak_mb > 300
    assert int(lines[-1]) < 60  # 20 MB a step: seen within 1.2 GB, whatever the machine does meanwhile
    assert "resources.extract.memory_mb" in str(failure)


def test_memory_of_grandchildren_counts_and_they_are_ended_too(run):
    failure, lines = run("""
        import subprocess, sys, time
        hog = "b = bytearray(400_000_000); import time; time.sleep(60)"
        grandchild = subprocess.Popen([sys.executable, "-c", hog])
        print(grandchild.pid, flush=True)
        time.sleep(60)
    """)
    assert failure.code == "TASK-OOM"
    assert not _alive(int(lines[-1]))


def test_a_mapped_file_is_not_memory_used_up(run, tmp_path: Path):
    big = tmp_path / "graph.bin"
    with big.open("wb") as file:
        file.truncate(350 * 1024 * 1024)
    result, _ = run(f"""
        import mmap, time
        with open({str(big)!r}, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            touched = sum(mapped[i] for i in range(0, len(mapped), 4096))  # 350 MiB resident, limit 300
            time.sleep(1.5)
    """)
    assert result.code == "NO-RECEIPT"  # it ran to its end
    assert result.peak_mb < 300


def test_a_hang_is_ended_with_its_stack_in_the_log(run):
    failure, lines = run(
        """
        import time
        def waiting_for_ever():
            time.sleep(3600)
        waiting_for_ever()
        """,
        task="promote",
    )
    assert isinstance(failure, launcher.RetryableFailure)
    assert (failure.code, failure.exit_code) == ("TIMEOUT", ExitCode.TIMEOUT)
    assert any("in waiting_for_ever" in line for line in lines)
    assert 1.5 <= failure.seconds < 8


def test_a_hang_that_ignores_the_signal_is_killed(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launcher, "STACK_DUMP_SECONDS", 0.5)
    failure, _ = run(
        """
        import faulthandler, signal, time
        faulthandler.disable()
        signal.signal(signal.SIGABRT, signal.SIG_IGN)
        while True:
            time.sleep(1)
        """,
        task="promote",
    )
    assert failure.code == "TIMEOUT"
    assert failure.seconds < 8


@pytest.mark.parametrize(
    ("task", "exit_code", "code", "kind"),
    [
        ("extract", ExitCode.BAD_DATA, "BAD-DATA", launcher.FinalFailure),
        ("validate", ExitCode.BAD_DATA, "DQ-CRITICAL", launcher.FinalFailure),
        ("extract", ExitCode.BAD_SETTINGS, "BAD-SETTINGS", launcher.FinalFailure),
        ("extract", ExitCode.CORRUPT, "CORRUPT", launcher.FinalFailure),
        ("extract", ExitCode.UNAVAILABLE, "UNAVAILABLE", launcher.ServiceUnavailable),
        ("extract", ExitCode.BUSY, "BUSY", launcher.WorkBusy),
        ("extract", 1, "TASK-ERROR", launcher.RetryableFailure),
    ],
)
def test_exit_codes(run, task: str, exit_code: int, code: str, kind: type):
    failure, _ = run(
        f"import sys; print('users: 3 null ids', file=sys.stderr); sys.exit({int(exit_code)})", task
    )
    assert type(failure) is kind
    assert (failure.code, failure.exit_code) == (code, int(exit_code))
    assert "  | users: 3 null ids" in str(failure)
    assert f"docs/runbooks/{code}.md" in str(failure)


def test_every_code_has_a_runbook_of_the_agreed_shape():
    codes = {*launcher.KINDS, "DATA-LATE", "RUN-FAILED"}
    pages = {page.stem for page in (ROOT / "docs/runbooks").glob("*.md")} - {"README"}
    assert codes <= pages
    for code in sorted(codes):
        text = (ROOT / f"docs/runbooks/{code}.md").read_text(encoding="utf-8")
        for heading in ("## What you see", "## What is normal", "## What to do", "## How you know it worked"):
            assert heading in text, f"{code}.md lacks {heading}"


def test_the_tail_keeps_the_last_twenty_lines_of_both_streams(run):
    failure, lines = run("""
        import sys
        for i in range(100):
            print("line", i, file=sys.stderr if i % 2 else sys.stdout, flush=True)
        sys.exit(1)
    """)
    assert list(failure.tail) == [f"line {i}" for i in range(80, 100)]
    assert len(lines) == 101  # the command, and every line


def test_odd_output_does_no_harm(run):
    failure, lines = run(r"""
        import sys
        sys.stdout.buffer.write(b"\xff\xfe bytes that are no text\n" + b"bar 1%\rbar 2%\rbar 3%\n")
        sys.stdout.buffer.write(b"x" * 1_000_000)
        sys.exit(1)
    """)
    assert "bar 3%" in lines  # a progress bar's carriage returns are lines
    assert all(len(line) <= launcher.MAX_LINE for line in lines)
    assert len(failure.tail) == 20


def test_a_sink_that_breaks_does_not_stop_the_child(settings: Settings):
    def broken(_: str) -> None:
        raise BrokenPipeError

    outcome = launcher.supervise(
        [sys.executable, "-c", "print('x' * 500_000)"],
        environment=dict(os.environ),
        memory_mb=300,
        timeout_seconds=30,
        emit=broken,
    )
    assert outcome.returncode == 0


def test_what_the_child_left_behind_is_ended(run):
    result, lines = run("""
        import subprocess, sys, time
        print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
        time.sleep(2)
    """)
    assert result.seconds < 20  # the pipe that the orphan holds does not keep us waiting
    assert not _alive(int(lines[-1]))


def test_the_child_gets_threads_and_files_and_none_of_airflows_secrets(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "secret")
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "secret")
    _, lines = run("""
        import os
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "AUDIOREC_PROGRESS"):
            print(name, os.environ[name])
        print([name for name in os.environ if "AIRFLOW" in name])
        raise SystemExit(1)
    """)
    assert "OMP_NUM_THREADS 3" in lines
    assert any(line.endswith("progress/2026-11-23/extract.json") for line in lines)
    assert lines[-1] == "[]"


def test_the_command_is_what_a_person_would_type():
    command = launcher.task_command(
        "train_hgnn", AS_OF, profile="smoke", force=True, promote="never", run_type="backfill"
    )
    assert command == [
        *(sys.executable, "-X", "faulthandler", "-m", "tasks.train_hgnn", "--as-of", "2026-11-23"),
        *("--profile", "smoke", "--force", "--promote", "never", "--run-type", "backfill"),
    ]


def test_the_child_dies_with_its_parent(tmp_path: Path):
    """The parent is killed without a chance to clean up; the child must not go on writing."""
    pid_file = tmp_path / "pid"
    child = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    parent = textwrap.dedent(f"""
        import os, sys
        from audiorec.launcher import supervise
        command = [sys.executable, "-c", {child!r}]
        supervise(command, environment=dict(os.environ), memory_mb=300, timeout_seconds=60)
    """)
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        pid = int(_wait_for(lambda: pid_file.exists() and pid_file.read_text()))
        assert _alive(pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _wait_for(lambda: not _alive(pid))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def test_an_exception_raised_into_the_parent_ends_the_child(settings: Settings):
    """Airflow's execution_timeout raises into the task from a signal handler."""

    class OwnTimeout(Exception):
        pass

    def raise_it(*_: object) -> None:
        raise OwnTimeout

    before = signal.signal(signal.SIGALRM, raise_it)
    seen: list[str] = []
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        with pytest.raises(OwnTimeout):
            launcher.supervise(
                [sys.executable, "-u", "-c", "import os, time; print(os.getpid()); time.sleep(60)"],
                environment=dict(os.environ),
                memory_mb=300,
                timeout_seconds=60,
                emit=seen.append,
            )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not _alive(int(seen[0]))


def test_it_works_from_a_thread(settings: Settings):
    """`audiorec run` shows progress in the main thread; PDEATHSIG goes by threads, so this needs a test."""
    outcomes: list[launcher.Outcome] = []

    def work() -> None:
        outcomes.append(
            launcher.supervise(
                [sys.executable, "-c", "import time; time.sleep(0.5)"],
                environment=dict(os.environ),
                memory_mb=300,
                timeout_seconds=60,
            )
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcomes[0].returncode == 0


@pytest.mark.parametrize(("exit_code", "ready"), [(0, True), (ExitCode.BUSY, False)])
def test_source_ready(settings: Settings, monkeypatch: pytest.MonkeyPatch, exit_code: int, ready: bool):
    outcome = launcher.Outcome(int(exit_code), None, 0.1, 10, 1000, ())
    monkeypatch.setattr(launcher, "supervise", lambda *_, **__: outcome)
    assert launcher.source_ready(AS_OF, settings) is ready


def test_source_that_cannot_be_read_is_a_failure_and_not_lateness(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    outcome = launcher.Outcome(int(ExitCode.BAD_SETTINGS), None, 0.1, 10, 1000, ("no such folder",))
    monkeypatch.setattr(launcher, "supervise", lambda *_, **__: outcome)
    with pytest.raises(launcher.FinalFailure, match="BAD-SETTINGS"):
        launcher.source_ready(AS_OF, settings)


def test_limits_reported_are_those_of_the_settings(settings: Settings):
    outcome = launcher.Outcome(-9, None, 1.0, 123, 456, ())
    failure = launcher.explain(
        "extract", AS_OF, outcome, TaskResources(memory_mb=300), "https://wiki/runbooks/"
    )
    assert failure is not None
    assert "peak memory 123 MiB of 300 MiB" in str(failure)
    assert failure.runbook == "https://wiki/runbooks/TASK-KILLED.md"
    assert "456 MiB left" in str(failure)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait_for(condition, seconds: float = 20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")
