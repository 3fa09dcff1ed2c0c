"""Runs a task's command line as a child process; the only place that knows how.

Why a child: a crash in native code (torch, faiss, DuckDB) takes the child and not the process that reports to
Airflow, so it becomes an ordinary failed task with its stack in the log and its callbacks called. Measured on
Airflow 3.3.2: a SIGKILL in the task's own process calls no task callback, a SIGSEGV spins for ever.

The parent watches: output line by line, memory of the whole process tree, the clock. The child dies with its
parent. Nothing here imports Airflow: the same call serves Airflow, `audiorec run` and a test.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import IO, Any

import psutil

from audiorec.errors import ExitCode
from audiorec.settings import HOLD_DAYS, SETTINGS_VARIABLE, Settings, TaskResources

Emit = Callable[[str], None]

TAIL_LINES = 20
SHOWN_WIDTH = 95
"""Characters of a message that Airflow's log shows beside the time, in a window of usual size."""

MAX_LINE = 4_000
"""Characters of a line that are passed on; a child that prints without newlines must not fill our memory."""

RESULT_PREFIX = "RESULT "
RESULT_VARIABLE = "AUDIOREC_RESULT"
PROGRESS_VARIABLE = "AUDIOREC_PROGRESS"
READINESS = TaskResources(memory_mb=2_000, threads=1, timeout_minutes=10)
"""Limits of the look at the source tables, which has no entry of its own in the settings."""

ROLLBACK = TaskResources(memory_mb=2_000, threads=1, timeout_minutes=10)
"""Limits of a rollback; it hashes the files of one version and asks MLflow a dozen things."""

PR_SET_PDEATHSIG = 1
MIB = 1024 * 1024
POLL_SECONDS = 0.2
TREE_SECONDS = 1.0
KILL_SECONDS = 5.0
"""How long we wait for a killed process to be gone: a busy machine takes its time."""
STACK_DUMP_SECONDS = 10.0
CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSYS}
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


# --- failures ------------------------------------------------------------------------------------------


class TaskFailed(RuntimeError):
    """A task's process did not end well; the message is what a person reads in Airflow's log.

    Attributes:
        code: which runbook to open (`docs/runbooks/CODE.md`).
        exit_code: what the command line that called us should exit with.
        task, as_of: what failed.
        signal_name: the signal that ended the child, if one did.
        peak_mb, limit_mb: memory of the process tree, MiB.
        seconds: how long the child lived.
        tail: the last lines that it printed, oldest first.
        result: what it said before it failed, if it did: a verdict of validate has Data Docs to link to.
    """

    retryable = False
    result: TaskResult | None = None

    def __init__(
        self,
        code: str,
        reason: str,
        advice: str,
        *,
        task: str,
        as_of: date | None,
        outcome: Outcome,
        limits: TaskResources,
        runbook: str,
        exit_code: int,
    ) -> None:
        self.code = code
        self.reason = reason
        self.advice = advice
        self.task = task
        self.as_of = as_of
        self.signal_name = outcome.signal_name
        self.peak_mb = outcome.peak_mb
        self.limit_mb = limits.memory_mb
        self.seconds = outcome.seconds
        self.tail = outcome.tail
        self.runbook = runbook
        self.exit_code = exit_code
        super().__init__(self._message())

    def _message(self) -> str:
        shown = "\n".join(map(_quoted, self.tail)) or "  | (it printed nothing)"
        about = f"{self.task} of {self.as_of}" if self.as_of else self.task
        again = "Airflow tries it again if tries are left." if self.retryable else "It is not tried again."
        return (
            f"[{self.code}] {about} {self.reason}\n"
            f"After {self.seconds:.1f} s; peak memory {self.peak_mb} MiB of {self.limit_mb} MiB allowed. "
            f"{again}\n"
            f"Last lines that it printed:\n{shown}\n"
            + textwrap.fill(
                f"What to do: {self.advice}", SHOWN_WIDTH, subsequent_indent="  ", break_long_words=False
            )
            + "\n"
            f"Runbook: {self.runbook}"
        )


def _quoted(line: str) -> str:
    """A printed line as part of a message: Airflow cuts a long one at the window's edge, remedy and all."""
    wrapped = textwrap.wrap(
        line,
        SHOWN_WIDTH,
        initial_indent="  | ",
        subsequent_indent="  |     ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(wrapped) or "  |"


class FinalFailure(TaskFailed):
    """A retry would end the same way: bad data, bad settings, a corrupt file, too little memory allowed."""


class RetryableFailure(TaskFailed):
    """A retry may go better: killed, crashed, too slow (training goes on from its checkpoint)."""

    retryable = True


class ServiceUnavailable(RetryableFailure):
    """A service or disk did not answer."""


class WorkBusy(RetryableFailure):
    """Another process holds the lease of the same work."""


# --- what came back ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """How a child ended."""

    returncode: int
    ended_by: str | None
    """`memory` or `timeout` if we ended it, else None."""
    seconds: float
    peak_mb: int
    available_mb: int
    """Memory that the machine had left when we last looked."""
    tail: tuple[str, ...]

    @property
    def signal_name(self) -> str | None:
        """Name of the signal that ended the child; a shell's 128 + n counts too."""
        number = -self.returncode if self.returncode < 0 else self.returncode - 128
        if number <= 0:
            return None
        try:
            return signal.Signals(number).name
        except ValueError:
            return None


@dataclass(frozen=True)
class TaskResult:
    """What a task says about itself when it ends well (the result JSON of the task contract)."""

    task: str
    as_of: str
    state: str
    manifest: str | None
    fingerprint: str | None
    counts: dict[str, int | float] = field(default_factory=dict)
    verdict: str | None = None
    links: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    peak_mb: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> TaskResult:
        """Read the result file.

        Raises:
            ValueError: not JSON, not an object, or a required key is missing.
        """
        raw = json.loads(text)
        if not isinstance(raw, dict):
            raise ValueError(f"expected an object, found {type(raw).__name__}")
        missing = sorted({"task", "as_of", "state", "manifest", "fingerprint"} - set(raw))
        if missing:
            raise ValueError(f"keys {missing} are missing")
        names = set(cls.__dataclass_fields__) - {"extra"}
        known = {name: value for name, value in raw.items() if name in names and value is not None}
        optional = {"manifest": None, "fingerprint": None}
        return cls(**{**optional, **known}, extra={k: v for k, v in raw.items() if k not in names})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, as it goes to XCom."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "extra"}
        return {**plain, **self.extra}

    def table(self) -> str:
        """A few lines that a person reads at the end of the log."""
        head = {"up_to_date": "up to date, nothing to do", "done": "done"}.get(self.state, self.state)
        rows: list[tuple[str, str]] = []
        for name, value in self.counts.items():
            rows.append((name, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"))
        if self.verdict:
            rows.append(("verdict", self.verdict))
        rows += list(self.links.items())
        if self.manifest:
            rows.append(("manifest", self.manifest))
        width = max((len(name) for name, _ in rows), default=0)
        lines = [f"{self.task} of {self.as_of}: {head} in {self.seconds:.1f} s, peak {self.peak_mb} MiB"]
        return "\n".join(lines + [f"  {name:<{width}}  {value}" for name, value in rows])


# --- the child -----------------------------------------------------------------------------------------


def _die_with(parent: int) -> Callable[[], None]:
    """What the child does between fork and exec: ask the kernel to be killed when its parent ends.

    Only calls into libc that was loaded before the fork, because other threads of the parent may hold locks.
    """

    def arrange() -> None:
        if _libc is not None:
            _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # the parent ended before prctl: nobody will tell us
            os._exit(128 + signal.SIGKILL)

    return arrange


class _Tree:
    """Memory of a process and all its descendants.

    Counted is what the kernel cannot take back: anonymous and shared memory. Pages of mapped files (the
    graph, parquet, libraries) are left out, since a task that maps a file larger than the limit is not
    using it up. The list of descendants is renewed once a second, since that reads all of /proc.
    """

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.members: list[psutil.Process] = [self.root]
        self.listed_at = 0.0

    def refresh(self) -> None:
        with contextlib.suppress(psutil.Error):
            self.members = [self.root, *self.root.children(recursive=True)]

    def megabytes(self) -> int:
        now = time.monotonic()
        if now - self.listed_at > TREE_SECONDS:
            self.refresh()
            self.listed_at = now
        return sum(_held_bytes(process) for process in self.members) // MIB

    def kill(self) -> None:
        """Kill every member, children of killed children included, and wait until the descendants are gone."""
        self.refresh()
        for process in self.members:
            with contextlib.suppress(psutil.Error):
                process.kill()
        # Not for the root: its exit status belongs to whoever started it.
        psutil.wait_procs(self.members[1:], timeout=KILL_SECONDS)


def _held_bytes(process: psutil.Process) -> int:
    try:
        with Path(f"/proc/{process.pid}/status").open("rb") as status:
            kib = [int(line.split()[1]) for line in status if line.startswith((b"RssAnon:", b"RssShmem:"))]
        if kib:
            return sum(kib) * 1024
    except (OSError, ValueError):
        pass
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


class _Lines(threading.Thread):
    """Passes a child's output on line by line and keeps the last lines."""

    def __init__(self, stream: IO[bytes], emit: Emit) -> None:
        super().__init__(name="child-output", daemon=True)
        self.stream = stream
        self.emit = emit
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def run(self) -> None:
        rest = b""
        while chunk := self._read():
            *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                self._pass_on(line)
            if len(rest) > MAX_LINE:
                self._pass_on(rest)
                rest = b""
        self._pass_on(rest)

    def _read(self) -> bytes:
        try:
            return os.read(self.stream.fileno(), 65_536)
        except (OSError, ValueError):  # closed under us, because a grandchild kept the pipe open
            return b""

    def _pass_on(self, raw: bytes) -> None:
        line = raw[:MAX_LINE].decode("utf-8", errors="replace").rstrip()
        if not line or line.startswith(
            RESULT_PREFIX
        ):  # the result is read from its file and shown as a table
            return
        self.tail.append(line)
        # A reader that stops would block the child for ever on a full pipe, so a broken sink is no reason to.
        with contextlib.suppress(Exception):
            self.emit(line)


def print_line(line: str) -> None:
    """The default sink: our own standard output, which is Airflow's task log there."""
    print(line, flush=True)


def supervise(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    memory_mb: int,
    timeout_seconds: float,
    emit: Emit = print_line,
) -> Outcome:
    """Run a command to its end, within limits.

    The child stays in our process group: Airflow ends a task that a person marks as failed by signalling its
    group, and Ctrl-C in a shell reaches it.

    Past `timeout_seconds` it gets SIGABRT, upon which a Python run with `-X faulthandler` writes the stacks
    of all its threads, and is killed with its tree 10 s later at the latest. Past `memory_mb` the tree is
    killed at once. Whatever ends this function (also an exception raised into it by Airflow's own timeout),
    no process of the tree is left.
    """
    started = time.monotonic()
    with subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=dict(environment),
        preexec_fn=_die_with(os.getpid()),
    ) as child:
        assert child.stdout is not None
        tree = _Tree(child.pid)
        with contextlib.suppress(psutil.Error, ValueError, OSError):
            tree.root.rlimit(
                psutil.RLIMIT_CORE, (0, 0)
            )  # a crash tells its stack; a 10 GB core file helps nobody
        lines = _Lines(child.stdout, emit)
        lines.start()
        peak_mb = 0
        available_mb = 0
        ended_by = None
        try:
            while True:
                try:
                    child.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    pass
                used_mb = tree.megabytes()
                peak_mb = max(peak_mb, used_mb)
                available_mb = psutil.virtual_memory().available // MIB
                if used_mb > memory_mb:
                    ended_by = "memory"
                    tree.kill()
                elif time.monotonic() - started > timeout_seconds:
                    ended_by = "timeout"
                    emit(f"time limit of {timeout_seconds:.0f} s reached; stacks of all threads follow")
                    child.send_signal(signal.SIGABRT)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(STACK_DUMP_SECONDS)
                    tree.kill()
                if ended_by:
                    child.wait()
                    break
        finally:
            if child.poll() is None:
                tree.kill()
            else:  # what the child started and left behind
                for process in tree.members[1:]:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                psutil.wait_procs(tree.members[1:], timeout=KILL_SECONDS)
            child.wait()
            lines.join(timeout=5.0)
    return Outcome(
        returncode=child.returncode,
        ended_by=ended_by,
        seconds=time.monotonic() - started,
        peak_mb=peak_mb,
        available_mb=available_mb,
        tail=tuple(lines.tail),
    )


def end_children() -> None:
    """Kill every process below us: for Airflow's `on_kill`, where a signal may have reached only us."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()


def child_environment(resources: TaskResources, settings_file: str | Path | None = None) -> dict[str, str]:
    """Our environment without what the child has no business with, and with its threads set.

    Airflow's own variables hold its database address and signing keys; tasks never talk to Airflow.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW__", "_AIRFLOW", "__AIRFLOW", "AIRFLOW_HOME"))
    }
    for name in THREAD_VARIABLES:
        environment[name] = str(resources.threads)
    # Threads that wait must sleep: spinning ones starve the tasks beside them (measured: 25 times slower).
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    environment["PYTHONUNBUFFERED"] = "1"
    environment["GX_ANALYTICS_ENABLED"] = "false"
    environment["MLFLOW_DISABLE_TELEMETRY"] = "true"
    if settings_file is not None:
        environment[SETTINGS_VARIABLE] = str(settings_file)
    return environment


# --- a task --------------------------------------------------------------------------------------------


def task_command(
    task: str,
    as_of: date,
    *,
    profile: str | None = None,
    force: bool = False,
    promote: str | None = None,
    extract: str | None = None,
    run_type: str = "manual",
    by: str | None = None,
) -> list[str]:
    """The command line of a task, as anyone can type it."""
    command = [sys.executable, "-X", "faulthandler", "-m", f"tasks.{task}", "--as-of", as_of.isoformat()]
    if profile is not None:
        command += ["--profile", profile]
    if force:
        command += ["--force"]
    if promote is not None:
        command += ["--promote", promote]
    if extract is not None:
        command += ["--extract", extract]
    if by:
        command += ["--by", by]
    return [*command, "--run-type", run_type]


def progress_file(settings: Settings, as_of: date | str, task: str) -> Path:
    """Where a running task says how far it is: {"done", "total", "unit", "note"}."""
    return Path(settings.store.scratch).absolute() / "progress" / str(as_of) / f"{task}.json"


def run_task(
    task: str,
    as_of: date,
    settings: Settings,
    *,
    settings_file: str | Path | None = None,
    profile: str | None = None,
    force: bool = False,
    promote: str | None = None,
    extract: str | None = None,
    run_type: str = "manual",
    by: str | None = None,
    emit: Emit = print_line,
) -> TaskResult:
    """Run one task of the chain for one date and return what it says.

    Args:
        settings: read here for the task's limits, the scratch folder and the runbooks' address; the child
            reads its own, from `settings_file` or the environment.
        extract: fingerprint of the extract to build on, so that all tasks of a run see one snapshot of the
            source; by default the source as it is now.
        run_type: manual, scheduled or backfill; anything else Airflow knows counts as manual.
        by: who asked for the run, for the history of releases.

    Raises:
        FinalFailure, RetryableFailure: how it failed, with everything a person needs.
    """
    resources = settings.resources[task]
    run_type = run_type if run_type in {"scheduled", "backfill"} else "manual"
    command = task_command(
        task,
        as_of,
        profile=profile,
        force=force,
        promote=promote,
        extract=extract,
        run_type=run_type,
        by=by,
    )
    progress = progress_file(settings, as_of, task)
    progress.parent.mkdir(parents=True, exist_ok=True)
    progress.unlink(missing_ok=True)
    try:
        return _run_command(
            command, task, as_of, resources, settings, settings_file, emit, {PROGRESS_VARIABLE: str(progress)}
        )
    finally:
        progress.unlink(missing_ok=True)


def run_rollback(
    settings: Settings,
    *,
    reason: str,
    to: str | None = None,
    hold_days: float = HOLD_DAYS,
    who: str = "",
    request: str = "",
    settings_file: str | Path | None = None,
    emit: Emit = print_line,
) -> TaskResult:
    """Roll the champion back (`python -m audiorec.release rollback`); the result's verdict says from where to where.

    Args:
        to: number of the version to go back to; by default the last good one.
        request: the same request, asked again, does nothing more.

    Raises:
        FinalFailure, RetryableFailure: how it failed, with everything a person needs.
    """
    command = [sys.executable, "-X", "faulthandler", "-m", "audiorec.release", "rollback"]
    values = {
        "--to": to,
        "--reason": reason,
        "--hold-days": f"{hold_days:g}",
        "--who": who,
        "--request": request,
    }
    # One word each, with `=`: a reason that begins with a dash is no option.
    command += [f"{name}={value}" for name, value in values.items() if value]
    return _run_command(command, "rollback", None, ROLLBACK, settings, settings_file, emit, {})


def _run_command(
    command: list[str],
    task: str,
    as_of: date | None,
    resources: TaskResources,
    settings: Settings,
    settings_file: str | Path | None,
    emit: Emit,
    variables: Mapping[str, str],
) -> TaskResult:
    """Run a command that writes its result to the file that AUDIOREC_RESULT names, and return that."""
    with tempfile.TemporaryDirectory(prefix="audiorec-result-") as folder:
        result_file = Path(folder) / "result.json"
        environment = child_environment(resources, settings_file)
        environment |= {RESULT_VARIABLE: str(result_file), **variables}
        emit("$ " + shlex.join(["python", *command[1:]]))
        outcome = supervise(
            command,
            environment=environment,
            memory_mb=resources.memory_mb,
            timeout_seconds=resources.timeout_minutes * 60,
            emit=emit,
        )
        text = result_file.read_text(encoding="utf-8") if result_file.exists() else ""
    failure = explain(task, as_of, outcome, resources, settings.alerts.runbook_base)
    if failure is not None:
        if outcome.returncode == ExitCode.BAD_DATA:
            with contextlib.suppress(ValueError, TypeError):
                failure.result = TaskResult.from_json(text)
        raise failure
    try:
        return TaskResult.from_json(text)
    except (ValueError, TypeError) as error:
        found = f"is not as agreed ({error})" if text else "is missing"
        base = settings.alerts.runbook_base
        raise _failure("NO-RECEIPT", 1, task, as_of, outcome, resources, base, found=found) from error


def source_ready(
    as_of: date, settings: Settings, *, settings_file: str | Path | None = None, emit: Emit = print_line
) -> bool:
    """Whether the source tables hold rows of a day yet (a cheap look, in a child for the same reasons).

    Raises:
        FinalFailure, RetryableFailure: the look itself failed (the tables cannot be read, say).
    """
    command = [
        sys.executable,
        "-X",
        "faulthandler",
        "-m",
        "audiorec.source",
        "--as-of",
        as_of.isoformat(),
        "--ready",
    ]
    outcome = supervise(
        command,
        environment=child_environment(READINESS, settings_file),
        memory_mb=READINESS.memory_mb,
        timeout_seconds=READINESS.timeout_minutes * 60,
        emit=emit,
    )
    if outcome.ended_by is None and outcome.returncode == ExitCode.BUSY:
        return False
    failure = explain("await_sources", as_of, outcome, READINESS, settings.alerts.runbook_base)
    if failure is not None:
        raise failure
    return True


def runbook_link(base: str, code: str) -> str:
    """Address of the runbook of a code."""
    return f"{base.rstrip('/')}/{code}.md"


@dataclass(frozen=True)
class _Kind:
    """What one code means: which exception, what is said, what is advised."""

    failure: type[TaskFailed]
    reason: str
    advice: str


KINDS = {
    "TASK-OOM": _Kind(
        FinalFailure,
        "used more memory than its limit of {memory_mb} MiB and was ended.",
        "raise resources.{task}.memory_mb in the settings if the machine has it ({available_mb} MiB were "
        "free), or run with a smaller profile; then Clear the task",
    ),
    "TIMEOUT": _Kind(
        RetryableFailure,
        "ran longer than its limit of {minutes:g} min and was ended.",
        "look at the stacks above: the same line in every try means a hang, else it is slow. A training goes "
        "on from its checkpoint. If slow is right, raise resources.{task}.timeout_minutes",
    ),
    "DQ-CRITICAL": _Kind(
        FinalFailure,
        "found data that no model may be trained on.",
        "open the Data Docs named above, mend or set aside the rows at their source, then Clear `extract` "
        "with downstream (`validate` alone would judge the same rows again)",
    ),
    "BAD-DATA": _Kind(
        FinalFailure,
        "cannot use its input.",
        "the last lines name table, column and counts; mend the source, then Clear `extract` with downstream",
    ),
    "BAD-SETTINGS": _Kind(
        FinalFailure,
        "was given a wrong setting or command line.",
        "the last lines name the setting; correct the settings file or the run's Params and trigger again",
    ),
    "CORRUPT": _Kind(
        FinalFailure,
        "read a stored file whose bytes are not those that its manifest promises.",
        "check the disk, then run the task that wrote the file again with force",
    ),
    "UNAVAILABLE": _Kind(
        ServiceUnavailable,
        "could not reach a service or disk.",
        "the last lines name it; bring it back (`audiorec status` shows ours), the retry does the rest",
    ),
    "BUSY": _Kind(
        WorkBusy,
        "found the same work being done by another process.",
        "nothing, if another run of this date is active: the retry finds its result",
    ),
    "TASK-CRASH": _Kind(
        RetryableFailure,
        "crashed in native code ({signal_name}).",
        "the stack is in the log above; a second crash at the same place is a fault of a library or of its "
        "input",
    ),
    "TASK-KILLED": _Kind(
        RetryableFailure,
        "was killed from outside by {signal_name}.",
        "SIGKILL without a person behind it is most often the kernel's out-of-memory killer: the machine had "
        "{available_mb} MiB left. The retry goes on from the last checkpoint",
    ),
    "TASK-ERROR": _Kind(
        RetryableFailure,
        "ended with an unexpected error (exit code {returncode}).",
        "the traceback above is a fault in the code, or a case that nobody thought of; see the runbook",
    ),
    "NO-RECEIPT": _Kind(
        FinalFailure,
        "ended with exit code 0, but its result {found}.",
        "a task must write its result to the file that AUDIOREC_RESULT names before it ends; this is a fault "
        "in the task's code",
    ),
}
"""Every code that this module gives; each has its page `docs/runbooks/CODE.md` (a test holds that)."""

_BY_EXIT_CODE = {
    int(ExitCode.BAD_DATA): "BAD-DATA",
    int(ExitCode.BAD_SETTINGS): "BAD-SETTINGS",
    int(ExitCode.CORRUPT): "CORRUPT",
    int(ExitCode.UNAVAILABLE): "UNAVAILABLE",
    int(ExitCode.BUSY): "BUSY",
    int(ExitCode.MEMORY): "TASK-OOM",  # the task's own MemoryError
}


def classify(task: str, outcome: Outcome) -> tuple[str, int] | None:
    """The code of how a child ended and what our own exit code should be; None if it ended well."""
    if outcome.ended_by == "memory":
        return "TASK-OOM", int(ExitCode.MEMORY)
    if outcome.ended_by == "timeout":
        return "TIMEOUT", int(ExitCode.TIMEOUT)
    if outcome.returncode == 0:
        return None
    if outcome.returncode == ExitCode.BAD_DATA and task == "validate":
        return "DQ-CRITICAL", outcome.returncode
    if outcome.returncode in _BY_EXIT_CODE:
        return _BY_EXIT_CODE[outcome.returncode], outcome.returncode
    if outcome.signal_name is not None:
        number = signal.Signals[outcome.signal_name]
        return ("TASK-CRASH" if number in CRASHES else "TASK-KILLED"), 128 + number
    return "TASK-ERROR", outcome.returncode


def explain(
    task: str, as_of: date | None, outcome: Outcome, limits: TaskResources, runbook_base: str
) -> TaskFailed | None:
    """How a child ended as an exception that says what happened and what to do; None if it ended well."""
    found = classify(task, outcome)
    if found is None:
        return None
    code, exit_code = found
    return _failure(code, exit_code, task, as_of, outcome, limits, runbook_base)


def _failure(
    code: str,
    exit_code: int,
    task: str,
    as_of: date | None,
    outcome: Outcome,
    limits: TaskResources,
    runbook_base: str,
    **more: object,
) -> TaskFailed:
    kind = KINDS[code]
    words: dict[str, object] = {
        "task": task,
        "memory_mb": limits.memory_mb,
        "minutes": limits.timeout_minutes,
        "available_mb": outcome.available_mb,
        "signal_name": outcome.signal_name,
        "returncode": outcome.returncode,
        **more,
    }
    return kind.failure(
        code,
        kind.reason.format(**words),
        kind.advice.format(**words),
        task=task,
        as_of=as_of,
        outcome=outcome,
        limits=limits,
        runbook=runbook_link(runbook_base, code),
        exit_code=exit_code,
    )
