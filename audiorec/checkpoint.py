"""Checkpoints of trainings: safetensors and JSON in the local scratch folder, replaced atomically.

Whoever trains holds the lease of the result (`Store.lease`), so one process writes a checkpoint at a time. A
checkpoint is named by the fingerprint of the result it leads to: one of other inputs is never picked up.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_RECORD = "audiorec_record"


class Checkpoint:
    """The newest state of one training.

    Args:
        folder: local scratch.
        name: fingerprint of the result.
        every_seconds: least pause between two writes.
    """

    def __init__(self, folder: Path, name: str, every_seconds: float) -> None:
        self._folder = folder / "checkpoints"
        self._path = self._folder / f"{name}.safetensors"
        self._every = every_seconds
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether enough time has passed for another write."""
        return time.monotonic() - self._written >= self._every

    def save(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Replace the checkpoint in one step; a kill leaves the old or the new one, never a mixture."""
        from safetensors.torch import save_file

        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        save_file(
            {k: v.contiguous() for k, v in tensors.items()}, temporary, metadata={_RECORD: json.dumps(record)}
        )
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(self._path)
        self._written = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The stored state, or None. An unreadable one is set aside, not trusted."""
        if not self._path.exists():
            return None
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, framework="pt") as file:
                record = json.loads(file.metadata()[_RECORD])
                return {key: file.get_tensor(key) for key in file.keys()}, record  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            aside = self._path.with_suffix(".unreadable")
            shutil.move(self._path, aside)
            print(
                f"checkpoint {self._path} is unreadable ({error}); moved to {aside.name}, training starts anew",
                flush=True,
            )
            return None

    def remove(self) -> None:
        """The result is committed: the checkpoint has served."""
        self._path.unlink(missing_ok=True)
