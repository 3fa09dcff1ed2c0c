"""Hashes that say which simulator made a folder: results quote them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from audiorec.simulator.config import SimulatorConfig, preset


def config_hash(config: SimulatorConfig) -> str:
    """sha256 of the settings as canonical JSON."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def code_hash() -> str:
    """sha256 over the generator's source files: an older generator's folder is not taken for a new one's."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def simulator_hash(config: SimulatorConfig | str) -> str:
    """sha256 over code and settings (or a preset's name): equal hashes mean equal tables and an equal oracle.

    Raises: BadSettings for an unknown preset.
    """
    if isinstance(config, str):
        config = preset(config)
    return hashlib.sha256(f"{code_hash()} {config_hash(config)}".encode()).hexdigest()
