"""What the store and the champion say, as Prometheus metrics: `python -m audiorec.oncall.metrics --port 9464`.

A scrape reads manifests and their records, newest data date first; nothing is kept between scrapes, so a restart
loses nothing and a killed task cannot leave a wrong figure behind. Airflow's own metrics (durations of tasks, states of
runs, heartbeats) come from Airflow (docs/monitoring.md). No label holds an id of a user or a title.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from statistics import median

import pandas as pd
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from audiorec.chain import CHAIN
from audiorec.champion import read_pointer
from audiorec.dates import end_of
from audiorec.settings import Settings, load_settings
from audiorec.store import Manifest, Store

METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "audiorec_up": ("1 if the store could be read", ()),
    "audiorec_task_data_age_seconds": ("Time since the end of the newest data date with a result", ("task",)),
    "audiorec_task_seconds": ("Wall-clock time of the newest result", ("task",)),
    "audiorec_task_peak_memory_bytes": ("Peak resident memory of the newest result", ("task",)),
    "audiorec_task_count": ("What the newest result counted: rows, titles, edges, targets", ("task", "what")),
    "audiorec_rejected_rows": ("Source rows set aside in the newest extract", ("table", "reason")),
    "audiorec_quality_findings": ("Findings of the newest validation", ("severity",)),
    "audiorec_quality_checks": ("Expectations checked by the newest validation", ()),
    "audiorec_quarantined_rows": ("Rows quarantined by the newest validation", ()),
    "audiorec_drift_ratio": ("Rows of the newest day over the median of the days before it", ("table",)),
    "audiorec_validation_mrr": ("Validation MRR of the newest HGNN", ("edge_type",)),
    "audiorec_loss": ("Training loss of the newest weights, at the kept epoch", ("model",)),
    "audiorec_hit_rate": ("HR@10 of the newest evaluation", ("panel", "model", "segment")),
    "audiorec_mrr": ("MRR of the newest evaluation", ("panel", "model", "segment")),
    "audiorec_coverage": ("Share of the catalogue in the lists", ("panel", "model", "segment")),
    "audiorec_evaluated_users": ("Users behind a hit rate", ("panel", "segment")),
    "audiorec_index_recall": ("Recall@100 of the newest index against exact search", ()),
    "audiorec_index_titles": ("Titles in the newest index", ()),
    "audiorec_champion_data_age_seconds": ("Time since the end of the champion's data date", ("model",)),
    "audiorec_champion_info": ("The champion: always 1", ("model", "version", "as_of")),
}
"""Name: (help, labels) of every metric; dashboards and alerts are checked against it."""


def age_seconds(as_of: date, now: datetime) -> float:
    """Seconds since a data date ended (UTC); 0 on the date itself."""
    return max(0.0, (now - end_of(as_of)).total_seconds())


class StoreCollector(Collector):
    """Reads the store at each scrape.

    Args:
        settings: which store and which registered model.
        now: the clock.
    """

    def __init__(self, settings: Settings, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._settings, self._now = settings, now

    def collect(self) -> Iterable[Metric]:
        """All families of `METRICS`; those without a result have no sample. `audiorec_up` is 0 if reading fails."""
        families = {
            name: GaugeMetricFamily(name, text, labels=labels) for name, (text, labels) in METRICS.items()
        }
        try:
            for name, labels, value in self._samples():
                families[name].add_metric(labels, value)
            up = 1.0
        except Exception as error:
            print(f"metrics: the store cannot be read: {type(error).__name__}: {error}", flush=True)
            up = 0.0
        families["audiorec_up"].add_metric([], up)
        return families.values()

    def _samples(self) -> Iterator[tuple[str, list[str], float]]:
        store = Store(self._settings.store.uri, self._settings.store.scratch)
        now = self._now()
        for task in CHAIN:
            manifest = newest(store, task)
            if manifest is None:
                continue
            yield "audiorec_task_data_age_seconds", [task], age_seconds(date.fromisoformat(manifest.key), now)
            run = store.run_record(manifest)
            if "seconds" in run:
                yield "audiorec_task_seconds", [task], float(run["seconds"])
            if "peak_mb" in run:
                yield "audiorec_task_peak_memory_bytes", [task], float(run["peak_mb"]) * 2**20
            for what, number in manifest.facts.get("counts", {}).items():
                yield "audiorec_task_count", [task, what], float(number)
            yield from _OWN.get(task, _nothing)(store, manifest)
        model = self._settings.release.model_name
        pointed = read_pointer(store, model)
        if pointed is not None:
            version, release = pointed
            yield (
                "audiorec_champion_data_age_seconds",
                [model],
                age_seconds(date.fromisoformat(release["as_of"]), now),
            )
            yield "audiorec_champion_info", [model, version, release["as_of"]], 1.0


def newest(store: Store, task: str) -> Manifest | None:
    """The result of the newest data date; of several of one date, the one that was made or used last."""
    for key in reversed(store.keys(task)):
        versions = store.versions(task, key)
        if versions:
            return max(versions, key=store.used_at)
    return None


def _nothing(store: Store, manifest: Manifest) -> Iterator[tuple[str, list[str], float]]:
    return iter(())


def _extract(store: Store, manifest: Manifest) -> Iterator[tuple[str, list[str], float]]:
    for named, rows in manifest.facts.get("rejects", {}).items():
        table, _, reason = named.partition(": ")
        yield "audiorec_rejected_rows", [table, reason], float(rows)


def _validate(store: Store, manifest: Manifest) -> Iterator[tuple[str, list[str], float]]:
    counts = manifest.facts["counts"]
    yield "audiorec_quality_checks", [], float(counts["expectations"])
    yield "audiorec_quality_findings", ["critical"], float(counts["critical"])
    yield "audiorec_quality_findings", ["warning"], float(counts["warnings"])
    yield "audiorec_quarantined_rows", [], float(counts["quarantined_rows"])
    report = json.loads(store.open(manifest, "validation.json").read_text(encoding="utf-8"))
    by_day: dict[str, dict[str, int]] = report["rows_by_day"]
    today = by_day.get(manifest.key, {})
    for table, rows in today.items():
        before = [other[table] for day, other in by_day.items() if day != manifest.key]
        if before and median(before) > 0:
            yield "audiorec_drift_ratio", [table], rows / median(before)


def _train_hgnn(store: Store, manifest: Manifest) -> Iterator[tuple[str, list[str], float]]:
    yield "audiorec_validation_mrr", ["all"], float(manifest.facts["validation_mrr"])
    for edge_type, value in manifest.facts["validation_mrr_by_type"].items():
        yield "audiorec_validation_mrr", [edge_type], float(value)
    history = json.loads(store.open(manifest, "curves.json").read_text(encoding="utf-8"))
    for line in history:
        if line["epoch"] == manifest.facts["best_epoch"] and line.get("loss") is not None:
            yield "audiorec_loss", ["HGNN"], float(line["loss"])


def _train_two_tower(store: Store, manifest: Manifest) -> Iterator[tuple[str, list[str], float]]:
    for model in manifest.facts["models"]:
        history = json.loads(store.open(manifest, f"{model}.curves.json").read_text(encoding="utf-8"))
        for line in history:
            # The untrained epoch, if it is the one kept, has no loss of its own.
            if line.get("best") and line.get("loss") is not None:
                yield "audiorec_loss", [model], float(line["loss"])


def _evaluate(store: Store, manifest: Manifest) -> Iterator[tuple[str, list[str], float]]:
    table = pd.read_csv(store.open(manifest, "metrics.csv"))
    users: dict[tuple[str, str], float] = {}
    for row in table.itertuples():
        labels = [str(row.panel), str(row.model), str(row.segment)]
        metric = str(row.metric)
        if metric.startswith("HR@"):
            name = "audiorec_hit_rate"
            users[labels[0], labels[2]] = float(row.users)
        elif metric == "MRR":
            name = "audiorec_mrr"
        elif metric.startswith("coverage@"):
            name = "audiorec_coverage"
        else:
            continue
        if pd.notna(row.value):
            yield name, labels, float(row.value)
    for (panel, segment), number in users.items():
        yield "audiorec_evaluated_users", [panel, segment], number


def _build_index(store: Store, manifest: Manifest) -> Iterator[tuple[str, list[str], float]]:
    yield "audiorec_index_recall", [], float(manifest.facts["recall_100"])
    yield "audiorec_index_titles", [], float(manifest.facts["counts"]["audiobooks"])


_OWN: dict[str, Callable[[Store, Manifest], Iterator[tuple[str, list[str], float]]]] = {
    "extract": _extract,
    "validate": _validate,
    "train_hgnn": _train_hgnn,
    "train_two_tower": _train_two_tower,
    "evaluate": _evaluate,
    "build_index": _build_index,
}


def main() -> None:
    """Serve the metrics until the process is ended."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--settings", type=Path, default=None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9464)
    given = parser.parse_args()
    registry = CollectorRegistry()
    registry.register(StoreCollector(load_settings(given.settings)))
    server, thread = start_http_server(given.port, addr=given.host, registry=registry)
    print(f"metrics of the store at http://{given.host}:{server.server_port}/metrics", flush=True)
    try:
        while thread.is_alive():
            time.sleep(1)
    except KeyboardInterrupt:
        server.shutdown()
        threading.Thread.join(thread, 5)


if __name__ == "__main__":
    main()
