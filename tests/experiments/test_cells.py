"""The runner of cells: which tasks it runs, in what order, and how many at a time."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from audiorec.chain import TASKS
from audiorec.errors import BadData, BadSettings
from audiorec.experiments.cells import (
    Cell,
    Experiment,
    Runner,
    missing,
    needed,
    room_for_jobs,
    seeded,
    sharing_cores,
)
from audiorec.experiments.tables import SHARES, TABLES, share_name
from audiorec.runner import Resolver

if TYPE_CHECKING:
    from conftest import Chain

SEEDS = (11, 12, 13)
"""None of which the tiny chain has run."""


class Recording(Runner):
    """The real plan, over tasks that only take a moment and note when.

    Those named in `fails` end in an error; what is `held` ("TASK SEED") ends when its event has come.
    """

    def __init__(
        self,
        *arguments: Any,
        fails: str = "",
        held: Mapping[str, threading.Event] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._fails, self._held, self._noting = fails, held or {}, threading.Lock()
        self.begun: list[str] = []
        self.ran: list[tuple[str, str, float, float]] = []

    def _run_task(self, task: str, cell: Cell, resolver: Resolver, at_once: int) -> None:
        assert 1 <= at_once <= self._jobs
        began = time.monotonic()
        with self._noting:
            self.begun.append(f"{task} {cell.seed}")
        time.sleep(0.05)
        if held := self._held.get(f"{task} {cell.seed}"):
            assert held.wait(60)
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
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
):
    resolver = Runner(experiment).resolver(Cell("as it was run", 1))
    there = resolver.manifest
    assert there("evaluate") is not None and missing("evaluate", resolver) == {}
    rivals, hgnn = (
        ("rivals", resolver.fingerprint("rivals")),
        ("train_hgnn", resolver.fingerprint("train_hgnn")),
    )
    assert missing("rivals", resolver) == {rivals: set()}
    monkeypatch.setattr(resolver, "manifest", lambda task: None if task == "train_hgnn" else there(task))
    assert missing("evaluate", resolver) == {}
    assert missing("rivals", resolver) == {rivals: {hgnn}, hgnn: set()}


def test_a_failed_task_ends_the_experiment_with_its_own_words_and_begins_nothing_more(
    experiment: Experiment, cells: list[Cell]
):
    said: list[str] = []
    told = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("failed"):
            told.set()

    # The HGNN of the second seed runs when the towers of the first fail: it ends, and nothing follows.
    runner = Recording(experiment, say, jobs=2, fails="train_two_tower", held={"train_hgnn 12": told})
    with pytest.raises(BadData, match="train_two_tower of default, evaluate, seed 11"):
        runner.run(cells)
    assert runner.begun == ["train_hgnn 11", "train_hgnn 12", "train_two_tower 11"]
    assert [task for task, *_ in runner.ran] == ["train_hgnn", "train_hgnn"]
    assert any(line.startswith("failed: default, evaluate, seed 11: train_two_tower") for line in said)


def test_an_interrupt_that_reaches_only_us_ends_the_tasks(tiny_chain: Chain, tmp_path: Path):
    """Both an interrupt and what `timeout` sends; the texts' encoder takes seconds to load, so there is time."""
    from audiorec.settings import as_toml

    settings = tiny_chain.settings
    store = settings.store.model_copy(update={"uri": str(tmp_path / "store"), "scratch": str(tmp_path)})
    (tmp_path / "settings.toml").write_text(as_toml(settings.model_copy(update={"store": store})))
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "audiorec.cli", "experiment", "table2"),
                *("--source", settings.source.uri, "--as-of", tiny_chain.as_of.isoformat()),
                *("--settings", str(tmp_path / "settings.toml"), "--out", str(tmp_path / "pages")),
                *("--jobs", "2"),
            ],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A test run in the background of a shell ignores interrupts, and its children would.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            cwd=Path(__file__).parents[2],
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.rstrip().endswith((": embed_text", ": embed_music")):
                break
        own, until = psutil.Process(process.pid), time.monotonic() + 20
        while not (tasks := own.children(recursive=True)):  # The line comes a moment before the process.
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=20) != 0
        _, alive = psutil.wait_procs(tasks, timeout=5)
        assert not alive
        process.stdout.close()


def test_tasks_at_a_time_share_the_cores(experiment: Experiment, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(8)))
    settings = experiment.settings(Cell("default", 1))
    wide = settings.resources["rivals"].model_copy(update={"threads": 6})
    settings = settings.model_copy(update={"resources": {**settings.resources, "rivals": wide}})
    found = [
        sharing_cores(settings, "rivals", at_once).resources["rivals"].threads for at_once in (1, 2, 4, 8, 16)
    ]
    assert found == [6, 4, 2, 1, 1]


@pytest.mark.parametrize(("cores", "gigabytes", "expected"), [(2, 64, 2), (16, 24, 4), (4, 3, 1)])
def test_there_is_room_for_one_task_a_core_as_far_as_memory_goes(
    cores: int, gigabytes: int, expected: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    free = psutil.virtual_memory()._replace(available=gigabytes * 2**30)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    assert room_for_jobs() == expected


def test_the_whole_of_scarcity_is_whole_whatever_the_settings_file_says(
    experiment: Experiment, tmp_path: Path
):
    path = tmp_path / "settings.toml"
    own = experiment.settings_file
    assert own is not None
    path.write_text(re.sub(r"(?m)^share = 1.0$", "share = 0.05", own.read_text()))
    scarce = replace(experiment, settings_file=path)
    assert scarce.settings(Cell("default", 1)).scarcity.share == 0.05
    cells = TABLES["scarcity"].all_cells((1, 2), simulated=False)
    for share in SHARES:
        of_share = [cell for cell in cells if cell.name == share_name(share)]
        assert len(of_share) == 4
        assert {scarce.settings(cell).scarcity.share for cell in of_share} == {share}
    # And of the whole, a seed has the cell that tables 2 and 3 are made of.
    whole = next(cell for cell in cells if cell.task == "evaluate" and cell.seed == 2)
    plain = seeded("default", 2)
    runner = Runner(experiment)
    assert runner.resolver(whole).fingerprint("evaluate") == runner.resolver(plain).fingerprint("evaluate")


def test_settings_leave_rivals_out_of_tables_2_and_3_and_name_those_that_do_not_exist():
    cells = TABLES["table2"].all_cells((1, 2), simulated=False, rivals=("ALS", "EASE"))
    found = [
        (cell.name, cell.seed, cell.overrides["rivals"]["models"]) for cell in cells if cell.task == "rivals"
    ]
    assert found == [("default", 1, ["ALS"]), ("default", 2, ["ALS"]), ("seedless", 1, ["EASE"])]
    only = TABLES["table2"].all_cells((1,), simulated=False, rivals=("ALS",))
    assert [cell.label for cell in only] == ["default, evaluate, seed 1", "default, rivals, seed 1"]
    with pytest.raises(BadSettings, match=r"\['ALX'\], which do not exist; known: .*ALS"):
        TABLES["table2"].all_cells((1,), simulated=False, rivals=("ALX",))


def test_what_a_task_needs_comes_in_the_order_of_the_chain():
    assert needed("rivals")[-1] == "rivals" and "train_two_tower" not in needed("rivals")
    for task in TASKS:
        found = needed(task)
        assert [name for name in TASKS if name in found] == found
        assert set(TASKS[task].inputs) <= set(found)
