"""Training curves and figures to MLflow, for the eye: never a reason for a training to fail.

The curves are in the store as well; an MLflow that does not answer costs a note in the log. A training that is
resumed goes on in the same MLflow run, found by its fingerprint.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from audiorec.settings import Settings


class Curves:
    """Figures of one training, by step."""

    def __init__(self, client: Any, run_id: str | None, page: str | None = None) -> None:
        self._client, self._run_id = client, run_id
        self.page = page
        """Address of the run in MLflow's UI, None where MLflow does not answer."""

    def log(self, step: int, figures: Mapping[str, float | None]) -> None:
        """Add one point to each named curve."""
        if self._client is None:
            return
        import time

        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        stamp = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), stamp, step) for name, value in figures.items() if value is not None
        ]
        try:
            self._client.log_batch(self._run_id, metrics=metrics)
        except MlflowException as error:
            print(f"MLflow did not take the curves ({_first_line(error)}); they are in the store", flush=True)
            self._client = None


def client(settings: Settings, *, patient: bool) -> Any:
    """An MLflow client that tries a request once; `patient` waits longer for its answer.

    MLflow's own retries pause for seconds of their own, whatever `mlflow.timeout_seconds` says; who has to go on
    trying (the registry) does so itself.
    """
    wait = min(30.0, settings.mlflow.timeout_seconds) if patient else 5.0
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(wait)))
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=settings.mlflow.uri, registry_uri=settings.mlflow.uri)


def experiment_id(mlflow: Any, settings: Settings) -> str:
    """The id of the experiment, made if it is not there."""
    from mlflow.exceptions import MlflowException

    name = settings.mlflow.experiment
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        try:
            return str(mlflow.create_experiment(name))
        except MlflowException:  # somebody else made it meanwhile
            found = mlflow.get_experiment_by_name(name)
    return str(found.experiment_id)


def find_or_create_run(mlflow: Any, settings: Settings, name: str, tags: Mapping[str, str]) -> str:
    """The id of the run with these tags (all must match); created if there is none."""
    experiment = experiment_id(mlflow, settings)
    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in sorted(tags.items()))
    found = mlflow.search_runs([experiment], filter_string=query, max_results=1)
    if found:
        return str(found[0].info.run_id)
    return str(mlflow.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id)


@contextmanager
def curves(
    settings: Settings, name: str, tags: Mapping[str, str], params: Mapping[str, Any]
) -> Iterator[Curves]:
    """Curves of one training, in the MLflow run that carries `tags`."""
    from mlflow.exceptions import MlflowException

    mlflow, run_id, page = None, None, None
    try:
        mlflow = client(settings, patient=False)
        run_id = find_or_create_run(mlflow, settings, name, tags)
        page = f"{settings.mlflow.uri}/#/experiments/{experiment_id(mlflow, settings)}/runs/{run_id}"
        for key, value in params.items():
            mlflow.log_param(run_id, key, value)
    except MlflowException as error:
        print(
            f"MLflow at {settings.mlflow.uri} does not answer ({_first_line(error)}); curves are in the store only",
            flush=True,
        )
        mlflow = None
    yield Curves(mlflow, run_id, page)
    if mlflow is not None and run_id is not None:
        try:
            mlflow.set_terminated(run_id)
        except MlflowException as error:
            print(f"MLflow did not close the run ({_first_line(error)})", flush=True)


def log_files(
    settings: Settings,
    name: str,
    tags: Mapping[str, str],
    about: Mapping[str, str],
    files: Sequence[Path],
) -> str:
    """Put files into the MLflow run that carries `tags`, those of the same name over the older ones.

    `about` are tags that may change from one time to the next.

    Returns one line for people: where they are, or that MLflow did not take them and why. Never an error: the files
    are where they were written.
    """
    from mlflow.exceptions import MlflowException

    try:
        mlflow = client(settings, patient=False)
        run_id = find_or_create_run(mlflow, settings, name, tags)
        for key, value in about.items():
            mlflow.set_tag(run_id, key, value)
        for file in files:
            mlflow.log_artifact(run_id, str(file))
        mlflow.set_terminated(run_id)
        page = f"{settings.mlflow.uri}/#/experiments/{experiment_id(mlflow, settings)}/runs/{run_id}"
    except (MlflowException, OSError) as error:
        return f"not in MLflow: {settings.mlflow.uri} did not take the files ({type(error).__name__}: {_first_line(error)[:60]}…)"
    return f"in MLflow: {page}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:160]
