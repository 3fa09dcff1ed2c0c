import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))


@pytest.fixture(autouse=True)
def without_data_docs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same suites without pages, which `tests/tasks/test_validate.py` looks at: half of the time."""
    from expectations.check import evaluate

    monkeypatch.setattr("tasks.validate.evaluate_with_docs", lambda suites, *_: [evaluate(s) for s in suites])
