"""Released versions and MLflow, shared with other rooms' tests (tests/support/released.py)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from released import mlflow_client, mlflow_uri, releases

__all__ = ["mlflow_client", "mlflow_uri", "releases"]
