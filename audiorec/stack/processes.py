"""Telling our processes from others', and ending them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from audiorec.stack.layout import STACK_VARIABLE


@dataclass(frozen=True)
class Identity:
    """A process id with its start time, since the system gives an id again."""

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    def process(self) -> psutil.Process | None:
        """The process, if it is still this one and alive."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 0.01
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def members(stack_id: str, leaders: Iterable[Identity] = ()) -> list[psutil.Process]:
    """All live processes of a stack, ourselves left out.

    Known by either of two signs, since neither sees all: the stack's id in their environment (Airflow's
    api-server and workers overwrite theirs when they set their title), or a session that one of the stack's
    services leads (a task may open one of its own).
    """
    sessions = {leader.pid for leader in leaders if not _taken_over(leader)}
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) in sessions or process.environ().get(STACK_VARIABLE) == stack_id:
                found.append(process)
    return found


def _taken_over(leader: Identity) -> bool:
    """Whether the system gave the id to another process. It does not while the session has members."""
    now = Identity.of(leader.pid)
    return now is not None and abs(now.started - leader.started) >= 0.01


def end(processes: Iterable[psutil.Process], patience_seconds: float) -> list[psutil.Process]:
    """Ask processes to end and kill those that have not after a while; returns those that were killed."""
    asked = list(processes)
    for process in asked:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, stubborn = psutil.wait_procs(asked, timeout=patience_seconds)
    for process in stubborn:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(stubborn, timeout=5)
    return stubborn


def sweep(stack_id: str, leaders: Iterable[Identity] = (), seconds: float = 10.0) -> int:
    """Kill what is left of a stack, until nothing is; returns how many were killed."""
    killed = 0
    leaders = list(leaders)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = members(stack_id, leaders)
        if not left:
            break
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
                killed += 1
        psutil.wait_procs(left, timeout=2)
    return killed
