"""Our Prometheus metrics on a real run, and dashboards that ask for nothing that nobody sends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import airflow
import httpx
import pandas as pd
import pytest
import yaml
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.parser import text_string_to_metric_families

from audiorec.chain import CHAIN
from audiorec.oncall.metrics import METRICS, StoreCollector, age_seconds

if TYPE_CHECKING:
    from conftest import Chain

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
AIRFLOW_METRICS = Path(airflow.__file__).parent / "_shared/observability/metrics/metrics_template.yaml"
WORDS = re.compile(r"\b(?:audiorec|airflow)_[a-z_0-9]+")


@pytest.fixture(scope="module")
def scraped(tiny_chain: Chain) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples over HTTP by metric and label values, two days after the run's date."""
    registry = CollectorRegistry()
    registry.register(
        StoreCollector(
            tiny_chain.settings,
            lambda: datetime.combine(tiny_chain.as_of, datetime.min.time(), UTC).replace(hour=6) + 2 * _DAY,
        )
    )
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    try:
        text = httpx.get(f"http://127.0.0.1:{server.server_port}/metrics").text
    finally:
        server.shutdown()
        thread.join(5)
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        found[family.name] = {
            tuple(sample.labels[label] for label in METRICS[family.name][1]): sample.value
            for sample in family.samples
        }
    return found


_DAY = pd.Timedelta(days=1).to_pytimedelta()


def test_every_metric_is_there_and_means_what_the_store_says(scraped: Any, tiny_chain: Chain):
    assert set(scraped) == set(METRICS)
    assert scraped["audiorec_up"][()] == 1
    ran = {task for task in CHAIN if task in tiny_chain.results}
    assert {task for (task,) in scraped["audiorec_task_seconds"]} == ran
    # The date ended at the next midnight; the clock stands at six o'clock two days on.
    assert set(scraped["audiorec_task_data_age_seconds"].values()) == {30 * 3600.0}
    assert all(value > 50e6 for value in scraped["audiorec_task_peak_memory_bytes"].values())
    metrics = pd.read_csv(tiny_chain.open("evaluate", "metrics.csv"))
    row = metrics[
        (metrics["panel"] == "full")
        & (metrics["model"] == "2T-HGNN")
        & (metrics["segment"] == "all")
        & (metrics["metric"] == "HR@10")
    ].iloc[0]
    assert scraped["audiorec_hit_rate"]["full", "2T-HGNN", "all"] == pytest.approx(row["value"])
    assert scraped["audiorec_evaluated_users"]["full", "all"] == row["users"]
    facts = tiny_chain.manifest("train_hgnn").facts
    assert scraped["audiorec_validation_mrr"]["all",] == pytest.approx(facts["validation_mrr"])
    rejects = tiny_chain.manifest("extract").facts["rejects"]
    assert sum(scraped["audiorec_rejected_rows"].values()) == sum(rejects.values()) > 0
    assert scraped["audiorec_index_recall"] == ({(): 1.0} if "build_index" in ran else {})
    if "validate" in ran:
        assert set(scraped["audiorec_drift_ratio"]) <= {
            ("music_events",),
            ("podcast_events",),
            ("audiobook_events",),
        }


def test_a_store_that_cannot_be_read_says_so(tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = tiny.settings(tmp_path, tmp_path)
    broken = tmp_path / "store" / "extract" / "2026-01-01" / "0123"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{not json")
    families = {family.name: family for family in StoreCollector(settings).collect()}
    assert [sample.value for sample in families["audiorec_up"].samples] == [0.0]
    assert "the store cannot be read: Corrupt" in capsys.readouterr().out


def test_the_age_counts_from_the_end_of_the_date():
    day = date(2026, 3, 1)
    assert age_seconds(day, datetime(2026, 3, 1, 12, tzinfo=UTC)) == 0
    assert age_seconds(day, datetime(2026, 3, 2, 1, tzinfo=UTC)) == 3600


# --- what dashboards, rules and the exporter's mapping say


def mapping() -> list[dict[str, Any]]:
    return yaml.safe_load((DOCKER / "statsd-mapping.yml").read_text())["mappings"]


def known() -> set[str]:
    return set(METRICS) | {one["name"] for one in mapping() if one.get("action") != "drop"}


def queries() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of all dashboards and alert rules."""
    for path in sorted((DOCKER / "grafana").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.name}: {panel['title']}", target["expr"]
    for group in yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"alerts.yml: {rule['alert']}", rule["expr"]


def test_every_query_names_metrics_that_exist_and_labels_that_they_have():
    asked: set[str] = set()
    for where, query in queries():
        names = set(WORDS.findall(query))
        assert names, f"{where} asks for nothing of ours: {query}"
        assert names <= known(), f"{where}: {sorted(names - known())} exist nowhere"
        asked |= names
        for name, labels in re.findall(r"(audiorec_[a-z_0-9]+)\{([^}]*)\}", query):
            used = {label for label, _ in re.findall(r'([a-z_]+)(=~?|!=)"', labels)}
            assert used <= set(METRICS[name][1]), (
                f"{where}: {name} has no label {used - set(METRICS[name][1])}"
            )
    unused = set(METRICS) - asked - {"audiorec_quarantined_rows", "audiorec_index_titles"}
    assert not unused, f"no dashboard shows {sorted(unused)}"


def test_legends_name_labels_that_their_metric_has():
    for path in sorted((DOCKER / "grafana").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                for name in set(WORDS.findall(target["expr"])) & set(METRICS):
                    assert labels <= set(METRICS[name][1]), (panel["title"], labels)


def test_the_mapping_names_what_airflow_really_sends():
    listed = yaml.safe_load(AIRFLOW_METRICS.read_text())["metrics"]
    sent = set()
    for metric in listed:
        for name in (metric["name"], metric["legacy_name"]):
            sent.add(re.sub(r"\{\w+\}", "*", name))
    for one in mapping():
        if one.get("action") != "drop":
            assert one["match"].removeprefix("airflow.") in sent, one["match"]


def test_rules_point_at_runbooks_that_exist():
    for group in yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            assert (ROOT / rule["annotations"]["runbook"]).is_file(), rule["alert"]
