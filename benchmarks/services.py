"""The real services for benchmarks and tests: on ports that nobody uses, up for as long as they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from audiorec import stack
from audiorec.settings import Settings
from audiorec.stack.client import AirflowClient
from audiorec.stack.layout import airflow_address
from audiorec.stack.servers import free_ports


def on_free_ports(home: Path) -> dict[str, dict[str, Any]]:
    """Groups of settings for services that keep their files in `home` and listen where nobody else does."""
    airflow_port, mlflow_port, serving_port = free_ports(3)
    return {
        "services": {
            "home": str(home),
            "airflow_port": airflow_port,
            "mlflow_port": mlflow_port,
            "serving_port": serving_port,
        },
        "mlflow": {"uri": f"http://127.0.0.1:{mlflow_port}"},
    }


@contextmanager
def served(settings: Settings, file: Path) -> Iterator[AirflowClient]:
    """The services of some settings, which are those of a file: up, logged in to, and ended afterwards."""
    stack.start(settings, settings_file=file, say=lambda _: None)
    try:
        account = stack.login(settings)
        with AirflowClient(airflow_address(settings), account.user, account.password) as client:
            yield client
    finally:
        stack.stop(settings, say=lambda _: None)
