"""The runner of cells: which tasks it runs, in what order, and how many at a time."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from audiorec.chain import TASKS
from audiorec.errors import BadData
from audiorec.experiments.cells import Cell, Experiment, Runner, missing, needed, seeded
from audiorec.runner import Resolver

if TYPE_CHECKING:
    from conftest import Chain

SEEDS = (11, 12, 13)
"""None of which the tiny chain has run."""


class Recording(Runner):
    """The real plan, over tasks that only take a moment and note when."""

    def __init__(self, *arguments: Any, fails: str | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._fails, self._noting = fails, threading.Lock()
        self.ran: list[tuple[str, str, float, float]] = []

    def _run_task(self, task: str, cell: Cell, resolver: Resolver) -> None:
        began = time.monotonic()
        time.sleep(0.05)
        if task == self._fails:
            raise BadData(f"{task} of {cell.label}")
        with self._noting:
            self.ran.append((task, resolver.fingerprint(task), began, time.monotonic()))

    def _result(self, cell: Cell, resolver: Resolver) -> Any:
        return cell.label


@pytest.fixture(scope="module")
def experiment(tiny_chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    from audiorec.settings import as_toml

    path = tmp_path_factory.mktemp("cells") / "settings.toml"
    path.write_text(as_toml(tiny_chain.settings))
    return Experiment(tiny_chain.settings.source.uri, tiny_chain.as_of, path, None)


@pytest.fixture
def cells() -> list[Cell]:
    return [seeded("default", seed, task) for seed in SEEDS for task in ("evaluate", "rivals")]


def test_shared_tasks_run_once_after_what_they_are_made_from_and_side_by_side(
    experiment: Experiment, cells: list[Cell]
):
    said: list[str] = []
    runner = Recording(experiment, said.append, jobs=2)
    results, left_out = runner.run(cells)
    assert results == [cell.label for cell in cells] and not left_out

    # Everything up to the graph is the tiny chain's and there; the HGNN of a seed serves towers and rivals.
    names = sorted(task for task, *_ in runner.ran)
    assert names == sorted(["train_hgnn", "train_two_tower", "evaluate", "rivals"] * len(SEEDS))
    ended = {(task, print_): end for task, print_, _, end in runner.ran}
    for cell in cells:
        resolver = runner.resolver(cell)
        for task, fingerprint, began, _ in runner.ran:
            if resolver.fingerprint(task) == fingerprint:
                below = [(name, resolver.fingerprint(name)) for name in TASKS[task].inputs]
                assert all(ended.get(one, 0.0) <= began for one in below), task

    at_once = [
        sum(began <= moment < end for _, _, began, end in runner.ran) for _, _, moment, _ in runner.ran
    ]
    assert max(at_once) == 2
    # The first seed's evaluation is no later than the last seed's training: cells are finished one by one.
    order = [task for task, *_ in sorted(runner.ran, key=lambda one: one[2])]
    assert order.index("evaluate") < len(order) - 1 - order[::-1].index("train_hgnn")
    counted = [line.split(" of ")[0] for line in said if " cells after " in line]
    assert counted == [str(number) for number in range(1, len(cells) + 1)]


def test_of_a_finished_cell_nothing_runs_even_if_what_it_was_made_from_is_gone(
    experiment: Experiment, tiny_chain: Chain
):
    resolver = Runner(experiment).resolver(Cell("as it was run", 1))
    assert resolver.manifest("evaluate") is not None and missing("evaluate", resolver) == {}
    own = ("rivals", resolver.fingerprint("rivals"))
    assert missing("rivals", resolver) == {own: set()}


def test_a_failed_task_ends_the_experiment_with_its_own_words_and_begins_nothing_more(
    experiment: Experiment, cells: list[Cell]
):
    runner = Recording(experiment, lambda text: None, jobs=2, fails="train_two_tower")
    with pytest.raises(BadData, match="train_two_tower of default"):
        runner.run(cells)
    assert "evaluate" not in {task for task, *_ in runner.ran}
    assert len(runner.ran) < len(SEEDS) * 4 - 2


def test_each_of_two_tasks_gets_half_of_the_threads(experiment: Experiment, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    settings = experiment.settings(Cell("default", 1))
    wide = settings.resources["rivals"].model_copy(update={"threads": 6})
    settings = settings.model_copy(update={"resources": {**settings.resources, "rivals": wide}})
    threads = lambda jobs: (  # noqa: E731
        Runner(experiment, jobs=jobs)._sharing_cores(settings, "rivals").resources["rivals"].threads
    )
    assert [threads(jobs) for jobs in (1, 2, 4, 8, 16)] == [6, 4, 2, 1, 1]


def test_what_a_task_needs_comes_in_the_order_of_the_chain():
    assert needed("rivals")[-1] == "rivals" and "train_two_tower" not in needed("rivals")
    for task in TASKS:
        found = needed(task)
        assert [name for name in TASKS if name in found] == found
        assert set(TASKS[task].inputs) <= set(found)
