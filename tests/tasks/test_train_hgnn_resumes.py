"""A training that is killed goes on from its checkpoint and ends with the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from audiorec.store import Store

if TYPE_CHECKING:
    from conftest import Chain

LONGER = {
    "max_epochs": 6,
    "patience": 6,
    "batch_size": 32,
    "edges_per_epoch": 1_800,
}
"""Some 340 batches: seconds of work."""

CHECKPOINT_SECONDS = 0.05
"""A checkpoint every few batches; when it is written changes no result, so the undisturbed one keeps its 20 s."""


def prepared(chain: Chain, tiny: Any, work: Path) -> Any:
    shutil.copytree(chain.settings.store.uri, work / "store")
    return tiny.settings(Path(chain.settings.source.uri), work, hgnn=LONGER)


def start(settings: Any, tiny: Any, chain: Chain, result: Path) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AUDIOREC_")}
    environment |= tiny.environment(settings) | {
        f"AUDIOREC_HGNN__{field.upper()}": str(value) for field, value in LONGER.items()
    }
    environment["AUDIOREC_STORE__CHECKPOINT_SECONDS"] = str(CHECKPOINT_SECONDS)
    environment["AUDIOREC_RESULT"] = str(result)
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.train_hgnn", "--as-of", str(chain.as_of), "--profile", "smoke"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.long
def test_killed_twice_it_ends_as_if_undisturbed(tiny_chain: Chain, tiny: Any, tmp_path: Path):
    undisturbed = tiny.run(prepared(tiny_chain, tiny, tmp_path / "calm"), tasks=("train_hgnn",))
    assert not any("resumed" in note for note in undisturbed.results["train_hgnn"]["notes"])
    settings = prepared(tiny_chain, tiny, tmp_path / "killed")
    checkpoints = tmp_path / "killed" / "scratch" / "checkpoints"
    result = tmp_path / "result.json"
    for _ in range(2):
        before = {path: path.stat().st_mtime_ns for path in checkpoints.glob("*.safetensors")}
        process = start(settings, tiny, tiny_chain, result)
        deadline = time.monotonic() + 90
        while {path: path.stat().st_mtime_ns for path in checkpoints.glob("*.safetensors")} == before:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no checkpoint was written"
            time.sleep(0.005)
        time.sleep(0.15)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was killed in the middle, not at its end"
        assert not result.exists()
        store = Store(settings.store.uri, settings.store.scratch)
        fingerprint = undisturbed.results["train_hgnn"]["fingerprint"]
        assert store.find("train_hgnn", str(tiny_chain.as_of), fingerprint) is None, (
            "nothing of it is visible"
        )
    process = start(settings, tiny, tiny_chain, result)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    found = json.loads(result.read_text())
    (note,) = [note for note in found["notes"] if "resumed" in note]
    assert note.startswith("resumed from a checkpoint after ")
    assert note in output
    expected = Path(undisturbed.results["train_hgnn"]["manifest"]).read_bytes()
    assert Path(found["manifest"]).read_bytes() == expected
    assert list(checkpoints.glob("*.safetensors")) == [], "it has served"
