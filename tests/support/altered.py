"""Results of tasks with one file changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from audiorec.store import Manifest, Store


def with_changed_file(
    store: Store,
    source: Manifest,
    changed: str,
    write: Callable[[Path, Path], None],
    target: Store | None = None,
) -> Manifest:
    """A result like `source`, one of its files written by a function of (old, new) path; in another store if one is given."""
    target = target or store
    with target.working_folder() as folder:
        outputs = {name: folder / name for name in source.files}
        for name, path in outputs.items():
            (write if name == changed else shutil.copy)(store.open(source, name), path)
        return target.commit(
            dataset=source.dataset,
            key=source.key,
            fingerprint="feedfacefeedface",
            outputs=outputs,
            inputs={},
            settings={},
            code="",
            facts={},
        )
