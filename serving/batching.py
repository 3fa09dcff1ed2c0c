"""Requests that come together are searched together: a scan of the catalogue for many costs little more than for one.

There is no waiting for company. A thread takes all that waits, up to a limit, and while it searches the next ones
gather. So an idle service answers a single request at once, and a busy one by the batch.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


class Overloaded(Exception):
    """So many requests wait that another would only grow old."""


@dataclass(frozen=True)
class _Job(Generic[Work, Result]):
    work: Work
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Result]


class Batcher(Generic[Work, Result]):
    """Threads that do work by the batch.

    Args:
        do: work in, for each its result or the exception that it ended with, in the same order.
        workers: threads.
        max_batch: most work handed to `do` at once.
        max_waiting: most work that waits for a thread.
    """

    def __init__(
        self,
        do: Callable[[Sequence[Work]], Sequence[Result | BaseException]],
        workers: int,
        max_batch: int,
        max_waiting: int,
    ) -> None:
        self._do, self._max_batch, self._max_waiting = do, max_batch, max_waiting
        self._jobs: queue.SimpleQueue[_Job[Work, Result] | None] = queue.SimpleQueue()
        self._taking = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, name=f"search-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Work that no thread has taken yet."""
        return self._jobs.qsize()

    async def submit(self, work: Work) -> Result:
        """The result of one piece of work. Raises Overloaded, or what the work ended with."""
        if self._jobs.qsize() >= self._max_waiting:
            raise Overloaded
        loop = asyncio.get_running_loop()
        job: _Job[Work, Result] = _Job(work, loop, loop.create_future())
        self._jobs.put(job)
        return await job.future

    def close(self) -> None:
        """End the threads; work that waits is finished first."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while True:
            jobs, ending = self._take()
            # A request that was given up meanwhile (its client left, its time is over) costs no search.
            wanted = [job for job in jobs if not job.future.cancelled()]
            if wanted:
                self._answer(wanted)
            if ending:
                return

    def _take(self) -> tuple[list[_Job[Work, Result]], bool]:
        # One thread takes at a time, or two would share out what is better searched at once.
        with self._taking:
            first = self._jobs.get()
            jobs = []
            while first is not None:
                jobs.append(first)
                if len(jobs) == self._max_batch:
                    return jobs, False
                try:
                    first = self._jobs.get_nowait()
                except queue.Empty:
                    return jobs, False
            return jobs, True

    def _answer(self, jobs: list[_Job[Work, Result]]) -> None:
        results: Sequence[Result | BaseException]
        try:
            results = self._do([job.work for job in jobs])
        except Exception as error:  # a bug: every request of the batch has to hear of it
            results = [error] * len(jobs)
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job[Work, Result], Result | BaseException]]] = {}
        for job, result in zip(jobs, results, strict=True):
            by_loop.setdefault(job.loop, []).append((job, result))
        for loop, answered in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, answered)


def _settle(answered: list[tuple[_Job[Work, Result], Result | BaseException]]) -> None:
    for job, result in answered:
        if job.future.done():
            continue
        if isinstance(result, BaseException):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
