"""Assets that more than one DAG names: Airflow knows an asset by name and address, so both are written once."""

from __future__ import annotations

from airflow.sdk import Asset

RELEASE = Asset(
    name="audiobook_release",
    uri="x-audiorec://release/audiobook_recommender",
    group="audiobook_recommender",
    extra={"registry": "MLflow registered model audiobook_recommender, alias champion"},
)
