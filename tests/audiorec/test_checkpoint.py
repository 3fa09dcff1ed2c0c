"""Checkpoints: one whole state or none, whatever is killed or damaged."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from audiorec.checkpoint import Checkpoint

RECORD = {"epoch": 3, "history": [{"loss": 0.5, "mrr": None}], "seed": 2**40}


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    # A transposed one, which is not contiguous, and one of whole numbers.
    return {
        "model.weight": torch.full((3, 2), value).T,
        "optimizer.0.step": torch.tensor(7),
        "empty": torch.zeros(0, 4),
    }


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path):
    checkpoint = Checkpoint(tmp_path, "hgnn-f1", every_seconds=60)
    assert checkpoint.load() is None
    checkpoint.save(tensors(0.1), RECORD)
    loaded, record = Checkpoint(tmp_path, "hgnn-f1", every_seconds=60).load()
    assert record == RECORD
    assert set(loaded) == set(tensors())
    for name, value in tensors(0.1).items():
        assert torch.equal(loaded[name], value) and loaded[name].dtype == value.dtype
    checkpoint.save(tensors(0.2), RECORD | {"epoch": 4})
    loaded, record = checkpoint.load()
    assert record["epoch"] == 4 and torch.equal(loaded["model.weight"], tensors(0.2)["model.weight"])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["hgnn-f1.safetensors"]


def test_a_checkpoint_of_another_result_is_not_picked_up(tmp_path: Path):
    Checkpoint(tmp_path, "hgnn-f1", 60).save(tensors(), RECORD)
    assert Checkpoint(tmp_path, "hgnn-f2", 60).load() is None


def test_it_is_due_after_its_pause_and_no_more_once_written(tmp_path: Path):
    checkpoint = Checkpoint(tmp_path, "f", every_seconds=0.05)
    assert not checkpoint.due
    time.sleep(0.06)
    assert checkpoint.due
    checkpoint.save(tensors(), RECORD)
    assert not checkpoint.due


def test_it_is_gone_once_it_has_served(tmp_path: Path):
    checkpoint = Checkpoint(tmp_path, "f", 60)
    checkpoint.save(tensors(), RECORD)
    checkpoint.remove()
    assert checkpoint.load() is None
    checkpoint.remove()


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "another safetensors", "head"])
def test_an_unreadable_one_is_set_aside_and_said(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    checkpoint = Checkpoint(tmp_path, "f", 60)
    checkpoint.save(tensors(), RECORD)
    path = tmp_path / "checkpoints" / "f.safetensors"
    whole = path.read_bytes()
    if damage == "another safetensors":
        save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes(
            {"empty": b"", "cut": whole[:-5], "noise": os.urandom(200), "head": b"\xff" + whole[1:]}[damage]
        )
    assert checkpoint.load() is None
    assert "is unreadable" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / "f.unreadable").exists()
    assert checkpoint.load() is None
    checkpoint.save(tensors(), RECORD)
    assert checkpoint.load() is not None


def test_a_kill_while_saving_leaves_the_old_or_the_new_one(tmp_path: Path):
    """A child saves states 1, 2, 3, … until it is killed; what lies there is one of them, whole."""
    fork = multiprocessing.get_context("fork")
    newest = 0

    def body() -> None:
        checkpoint = Checkpoint(tmp_path, "f", 0)
        for number in range(newest + 1, newest + 10_000):
            checkpoint.save(
                {"a": torch.full((50_000,), float(number)), "b": torch.full((9,), float(number))},
                {"n": number},
            )

    for round_ in range(12):
        process = fork.Process(target=body)
        process.start()
        time.sleep(0.03 + 0.01 * round_)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        loaded = Checkpoint(tmp_path, "f", 0).load()
        if loaded is None:
            assert newest == 0
            continue
        state, record = loaded
        assert record["n"] >= newest
        newest = record["n"]
        assert (state["a"] == newest).all() and (state["b"] == newest).all()
    assert newest > 3
