"""All settings in one place: one TOML file, environment variables over it, unknown keys refused.

Order, weakest first: defaults, the recipe's preset (`audiorec/presets/RECIPE.toml`), the TOML file, the
profile's overlay, environment variables (`AUDIOREC_<GROUP>__<FIELD>`), keyword overrides. Groups in `WHERE`
say where and how a run works; they are recorded but never change a result and so never a fingerprint.
Everything else is *what* is computed; each task hashes only the groups that it reads (`audiorec/chain.py`).
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from audiorec.errors import BadSettings

Origin = Literal["paper", "measured", "choice"]
Profile = Literal["smoke", "standard", "full"]
Recipe = Literal["default", "paper"]
PromotePolicy = Literal["fresh", "never", "if_better", "force"]
PromoteWord = Literal[PromotePolicy, "override_hold"]
"""What a run may ask for; no settings file may ask to override a hold, since it would do so every day."""
PROMOTE_WORDS: tuple[str, ...] = get_args(PromoteWord)
HOLD_DAYS = 7
"""How long a rollback keeps the daily run from promoting: a weekend and the days to find what was wrong. A choice."""

WHERE = frozenset(
    {"source", "store", "mlflow", "alerts", "services", "serving", "resources", "duckdb", "privacy"}
)
PRESETS = Path(__file__).parent / "presets"
SETTINGS_VARIABLE = "AUDIOREC_SETTINGS"
KEYS_VARIABLE = "AUDIOREC_API_KEYS"
"""API keys of the service by environment; no setting, because settings are printed and hashed."""


def setting(default: Any, text: str, *, unit: str = "", origin: Origin = "choice", **limits: Any) -> Any:
    """A field with its meaning, unit and origin, which docs/settings.md prints."""
    extra: dict[str, Any] = {"unit": unit, "origin": origin}
    if callable(default) and isinstance(default, type | type(lambda: 0)):
        return Field(default_factory=default, description=text, json_schema_extra=extra, **limits)
    return Field(default, description=text, json_schema_extra=extra, **limits)


class Group(BaseModel):
    """A frozen group of settings; an unknown key is an error, because a typo must not pass unseen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _none_in_words(cls, values: Any) -> Any:
        """TOML has no null: "none" stands for it where a field may be empty."""
        if not isinstance(values, Mapping):
            return values
        optional = {
            name for name, field in cls.model_fields.items() if type(None) in get_args(field.annotation)
        }
        return {k: None if k in optional and v == "none" else v for k, v in values.items()}

    @model_validator(mode="after")
    def _positive_lists(self) -> Self:
        for name, value in self:
            if isinstance(value, tuple) and any(isinstance(entry, int) and entry < 1 for entry in value):
                raise ValueError(f"{name} is {list(value)}; each number must be at least 1")
        return self


# --- where ---------------------------------------------------------------------------------------------


class Source(Group):
    uri: str = setting(
        ".audiorec/sample", "source tables: a folder of parquet, a .duckdb file or a .sql file of views"
    )
    target: Literal["audiobook", "podcast"] = setting(
        "audiobook", "what is recommended; podcast swaps the two roles, as in the paper's table 4"
    )


class StoreSettings(Group):
    uri: str = setting(".audiorec/store", "where manifests and their files live (any fsspec URL)")
    retention_days: int = setting(
        90,
        "days that `audiorec gc` keeps what was last made or used, and what promoted versions of that age need",
        unit="days",
        gt=0,
    )
    checkpoint_seconds: float = setting(20.0, "pause between two checkpoints of a training", unit="s", gt=0)
    scratch: str = setting(
        ".audiorec/scratch", "local folder for files being written, leases and checkpoints"
    )


class MLflow(Group):
    uri: str = setting("http://127.0.0.1:5000", "MLflow tracking server and registry")
    experiment: str = setting("audiobook_recommender", "MLflow experiment that the runs belong to")
    timeout_seconds: float = setting(60.0, "how long to keep trying an unreachable MLflow", unit="s", gt=0)


class Alerts(Group):
    webhook_url: str | None = setting(None, "where failure alerts are posted as JSON; none: only the log")
    runbook_base: str = setting("docs/runbooks", "prefix of runbook links in alerts")
    watch: bool = setting(
        False,
        "run the watchdog (`audiorec watch`) beside the services; for tables that grow daily, else it alarms",
    )
    watch_seconds: float = setting(60.0, "pause between two looks of the watchdog", unit="s", gt=0)
    serving_url: str | None = setting(
        None, "where the watchdog finds the recommendation service; none: the one that runs here"
    )
    deadman_url: str | None = setting(
        None, "address that the watchdog asks after each look; whoever serves it alarms when that stops"
    )
    stale_hours: float = setting(
        36.0,
        "age of the champion's data, from the end of their day, that the watchdog reports",
        unit="h",
        gt=0,
    )
    late_minutes: float = setting(
        15.0,
        "time by which the day's tables should be there: after midnight UTC for the watchdog, after the run began to wait for Airflow",
        unit="min",
        ge=0,
    )


class Services(Group):
    home: str = setting(".audiorec", "folder of Airflow's and MLflow's own state, logs and generated secrets")
    host: str = setting("127.0.0.1", "address that every service binds to")
    airflow_port: int = setting(8080, "Airflow UI and API", gt=0, lt=65536)
    mlflow_port: int = setting(5000, "MLflow UI and API", gt=0, lt=65536)
    database_url: str | None = setting(
        None, "Airflow's metadata database, as an SQLAlchemy URL; none: SQLite in `home`"
    )
    broker_url: str | None = setting(
        None, "Celery's broker: tasks run on Celery workers; none: beside the scheduler (LocalExecutor)"
    )
    workers: int = setting(2, "Celery workers on this machine, where there is a broker", ge=0)
    serving_port: int = setting(8000, "recommendation service", gt=0, lt=65536)

    @model_validator(mode="after")
    def _celery_needs_a_database(self) -> Services:
        if self.broker_url is not None and self.database_url is None:
            raise ValueError(
                "services.broker_url is set but services.database_url is not: Celery workers need a database that "
                "several processes can write to, such as Postgres"
            )
        return self


class Serving(Group):
    follow: Literal["registry", "pointer"] = setting(
        "registry",
        "whose champion is served: the registry's alias, or the pointer in the store where MLflow is out of reach",
    )
    poll_seconds: float = setting(5.0, "pause between two looks at the champion", unit="s", gt=0)
    require_key: bool = setting(True, "refuse requests without an API key")
    hidden_file: str | None = setting(
        None, "file of audiobook ids, one a line, that are never shown; read again when it changes"
    )
    forgotten_file: str | None = setting(
        None, "file of user ids, one a line, whose data is not used; read again when it changes"
    )
    warm_text: bool = setting(
        True,
        "load the text model, for titles that a release does not hold, before a version answers; false: with the first such title",
    )
    surfaces: tuple[str, ...] = setting(
        ("home", "search", "title", "other"), "places that ask, as metrics count them"
    )
    requests_per_second: float = setting(200.0, "of one API key, on average", unit="requests/s", gt=0)
    burst: int = setting(400, "requests of one key at once", gt=0)
    max_body_kb: int = setting(256, "a longer request is refused", unit="KiB", gt=0)
    timeout_seconds: float = setting(10.0, "a request that takes longer is given up", unit="s", gt=0)
    max_waiting: int = setting(512, "requests that wait for a search; more are turned away", gt=0)
    max_batch: int = setting(32, "requests searched at once", gt=0)
    workers: int = setting(2, "threads that search", gt=0)
    threads: int = setting(1, "threads of torch in each", gt=0)


class TaskResources(Group):
    memory_mb: int = setting(
        4000, "resident memory of the task's process tree before it is ended", unit="MiB", gt=0
    )
    threads: int = setting(2, "threads of torch, BLAS and DuckDB", gt=0)
    timeout_minutes: float = setting(60.0, "wall-clock limit", unit="min", gt=0)
    queue: str | None = setting(
        None, "Celery queue that takes the task, where workers differ; none: Airflow's default"
    )


def _resources() -> dict[str, TaskResources]:
    # One thread: two that sleep while they wait for each other train more slowly (docs/tuning.md).
    heavy = TaskResources(memory_mb=10_000, threads=1, timeout_minutes=240)
    return {
        "extract": TaskResources(memory_mb=6_000),
        "validate": TaskResources(memory_mb=3_000, timeout_minutes=30),
        "embed_text": TaskResources(memory_mb=6_000, timeout_minutes=240),
        "embed_music": TaskResources(memory_mb=6_000),
        "build_graph": TaskResources(memory_mb=8_000),
        "train_hgnn": heavy,
        "train_two_tower": heavy,
        "evaluate": TaskResources(memory_mb=8_000),
        "rivals": TaskResources(memory_mb=10_000, timeout_minutes=120),
        "oracle": TaskResources(),
        "analysis": TaskResources(memory_mb=6_000),
        "refresh": TaskResources(memory_mb=8_000),
        "build_index": TaskResources(memory_mb=6_000),
        "promote": TaskResources(memory_mb=6_000, timeout_minutes=30),
    }


class DuckDB(Group):
    memory_mb: int = setting(
        2_000, "DuckDB's memory limit; it spills to scratch beyond it", unit="MiB", gt=100
    )


class Privacy(Group):
    """Never hashed by itself: digests of the source are taken of pseudonyms, so they differ with the key."""

    user_ids: Literal["pseudonyms", "as_given"] = setting(
        "pseudonyms",
        "how users are named in all that is stored: by a keyed hash, or as the source does (public data, "
        "or ids that are pseudonyms already)",
    )
    key_file: str = setting(
        ".audiorec/secrets/user-ids.key",
        "file with the key of the pseudonyms, made when there is none; keep it outside the store, and keep it",
    )
    purge_days: int = setting(
        30, "after a user is forgotten, stored versions that held the user are collected", unit="days", ge=0
    )


# --- what ----------------------------------------------------------------------------------------------


class Time(Group):
    window_days: int | Literal["all"] = setting(90, "history that a cut sees", unit="days", origin="paper")
    holdout_days: int = setting(14, "days at the end kept for judging", unit="days", origin="paper", gt=0)
    target_days: int = setting(
        14, "days before the split whose first streams are the targets", unit="days", gt=0
    )
    target_blocks: int = setting(1, "blocks of target days, each with a graph that ends before it", gt=0)
    validation_days: int = setting(3, "last target days that choose when to stop", unit="days", gt=0)
    validation_targets: int = setting(300, "validation is lengthened to hold this many targets", gt=0)
    validation_share: float = setting(0.2, "... or this share of the targets, whichever is less", gt=0, lt=1)

    @field_validator("window_days")
    @classmethod
    def _some_days(cls, days: int | Literal["all"]) -> int | Literal["all"]:
        if days != "all" and days < 1:
            raise ValueError(f"time.window_days is {days}, but must be at least 1, or 'all'")
        return days

    @model_validator(mode="after")
    def _validation_inside_targets(self) -> Time:
        if self.validation_days >= self.target_days:
            raise ValueError(
                f"time.validation_days is {self.validation_days}, but must be less than time.target_days ({self.target_days})"
            )
        return self


class Extract(Group):
    min_stream_seconds: int = setting(30, "a shorter stream does not count", unit="s", ge=0)
    late_days: int = setting(
        3, "a row may arrive in a folder this many days after its own day", unit="days", ge=0
    )
    max_seconds: int = setting(86_400, "a longer play than a day is not believed", unit="s", gt=0)
    max_events_per_user_day: int = setting(
        500, "events of one user on one day and in one table beyond this are set aside", unit="events", gt=0
    )


class Validation(Group):
    max_reject_share: float = setting(
        0.25, "share of a table's rows set aside that stops the run", gt=0, le=1
    )
    max_unknown_share: float = setting(
        0.2, "share of events naming an id that the catalogue lacks", gt=0, le=1
    )
    max_null_text_share: float = setting(
        0.5, "share of titles without text beyond which a warning is raised", gt=0, le=1
    )
    freshness_days: int = setting(0, "days that may pass between the last event and as_of", unit="days", ge=0)
    drift_days: int = setting(28, "days before as_of that volume is compared with", unit="days", gt=0)
    max_volume_ratio: float = setting(5.0, "day's rows over the median of the drift days that warns", gt=1)
    absurd_volume_ratio: float = setting(50.0, "... and that stops the run", gt=1)
    min_audiobooks: int = setting(10, "fewer titles in the catalogue stop the run", gt=0)
    known_gaps: tuple[date, ...] = setting(
        (), "days known to have no events, an outage that cannot be repaired"
    )


class Text(Group):
    model: str = setting(
        "builtin:all-MiniLM-L6-v2",
        "sentence-transformers model: builtin (shipped in a wheel), a name, or a folder",
    )
    revision: str = setting("0.1.0", "revision of the model; part of the cache's key")
    max_tokens: int = setting(128, "longer texts are truncated", unit="tokens", gt=8)


class Music(Group):
    unit: Literal["artist", "track"] = setting("artist", "what is factorised", origin="paper")
    dimensions: int = setting(64, "length of a music vector", gt=1)
    min_users: int = setting(2, "artists with fewer listeners get no vector of their own", unit="users", gt=0)


Relation = Literal["audiobook_audiobook", "audiobook_podcast", "podcast_podcast"]


class Graph(Group):
    relations: tuple[Relation, ...] = setting(
        ("audiobook_audiobook", "audiobook_podcast", "podcast_podcast"),
        "edges that the graph has; fewer in the paper's ablations C to F",
        origin="paper",
        min_length=1,
    )
    rule: Literal["top_k", "min_users"] = setting(
        "top_k", "which edges stay: top K a title and relation by shrunk lift, or all with enough users"
    )
    min_users: int = setting(1, "users on an edge, at least", unit="users", origin="paper", gt=0)
    top_k: int = setting(20, "neighbours kept a title and relation under rule top_k", gt=0)
    shrinkage: float = setting(
        5.0, "pseudo-users added to the expected count before the lift", unit="users", ge=0
    )
    max_titles_per_user: int = setting(
        100, "latest titles of one user and type that make pairs; caps what a bot can do", unit="titles", gt=1
    )


class HGNN(Group):
    hidden_dim: int = setting(128, "width of the hidden layer", gt=0)
    out_dim: int = setting(128, "length of an HGNN embedding", gt=0)
    num_layers: int = setting(2, "message-passing layers", origin="paper", gt=0, le=3)
    fanouts: tuple[int, ...] = setting((10, 5), "sampled neighbours a relation and hop", origin="measured")
    aggregator: Literal["max", "mean", "sum"] = setting("max", "equation 2", origin="paper")
    final_activation: bool = setting(False, "non-linearity after the last update (the paper does not say)")
    text_neighbors: int = setting(
        10,
        "titles that read alike by whose embeddings one without an edge is placed; 0: by induction alone (paper)",
        origin="measured",
        ge=0,
    )
    balanced: bool = setting(True, "balanced multi-link sampler", origin="paper")
    margin: float = setting(0.4, "Delta of equation 4 (not stated in the paper)", unit="cosine", gt=0)
    negatives: int = setting(8, "negatives a supervised edge", gt=0)
    learning_rate: float = setting(0.001, "Adam", origin="paper", gt=0)
    batch_size: int = setting(2_048, "supervised edges a step (paper: 256)", origin="measured", gt=0)
    max_epochs: int = setting(50, "at most", origin="paper", gt=0)
    patience: int = setting(10, "epochs without gain before stopping", origin="paper", gt=0)
    validation_share: float = setting(0.1, "edges held out for early stopping", origin="paper", gt=0, lt=0.5)
    edges_per_epoch: int | None = setting(
        20_000,
        "cap on supervised edges an epoch, over all types; none: as the sampler gives",
        origin="measured",
    )
    seed: int = setting(1, "random seed")

    @model_validator(mode="after")
    def _one_fanout_a_layer(self) -> HGNN:
        if len(self.fanouts) != self.num_layers:
            raise ValueError(
                f"hgnn.fanouts has {len(self.fanouts)} entries, but hgnn.num_layers is {self.num_layers}"
            )
        return self


class TwoTowerSettings(Group):
    models: tuple[Literal["2T-HGNN", "2T"], ...] = setting(
        ("2T-HGNN", "2T"), "variants that are trained: with HGNN (released) and without (to compare)"
    )
    music: bool = setting(True, "the music vector among the user's features", origin="paper")
    demographics: bool = setting(True, "age and country among the user's features", origin="paper")
    layers: tuple[int, ...] = setting(
        (512, 256, 128), "fully connected layers of each tower", origin="paper", min_length=1
    )
    loss: Literal["softmax", "inverse_propensity"] = setting(
        "softmax", "softmax over the catalogue with sampling correction, or the paper's equation 5"
    )
    popularity_prior: bool = setting(True, "start from smoothed recent popularity", origin="measured")
    affinities: bool = setting(
        True, "... and from affinities to what the user did, weighted by a convex fit", origin="measured"
    )
    text_dimensions: int = setting(64, "principal axes of the text that affinities and features keep", gt=0)
    ridge: float = setting(10.0, "pull of the fit of popularity and affinities", unit="targets", gt=0)
    popularity_windows: tuple[int, ...] = setting(
        (7, 14, 30, 60), "windows of popularity features", unit="days"
    )
    popularity_smoothing: float = setting(0.5, "pseudo-streams added to every title", unit="streams", gt=0)
    full_softmax_limit: int = setting(
        2_000, "titles up to which the softmax covers the whole catalogue", gt=0
    )
    negatives: int = setting(1_024, "uniform negatives a step beyond that", gt=0)
    learning_rate: float = setting(0.0003, "Adam (paper: 0.001)", origin="measured", gt=0)
    weight_decay: float = setting(0.0001, "L2 on the towers' weights", ge=0)
    dropout: float = setting(0.3, "after each hidden layer", origin="measured", ge=0, lt=1)
    batch_size: int = setting(128, "targets a step", origin="paper", gt=0)
    epochs: int = setting(40, "at most (paper: 10)", gt=0)
    patience: int = setting(3, "epochs without gain on the validation targets", gt=0)
    residual_share: float = setting(
        0.5,
        "share of what the towers learnt beyond the base that is kept: they learn from the next day and serve for weeks",
        origin="measured",
        gt=0,
        le=1,
    )
    introduction_share: float = setting(
        0.1,
        "share of the first ten places that titles nobody has streamed yet are lifted to; 0 lifts none",
        origin="measured",
        ge=0,
        lt=1,
    )
    max_targets: int = setting(200_000, "targets used; a seeded sample beyond", gt=0)
    weak_signals: bool = setting(
        True, "follow, preview and intent to pay among the user's features", origin="paper"
    )
    seed: int = setting(1, "random seed")

    @field_validator("models")
    @classmethod
    def _the_released_one(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if "2T-HGNN" not in models:
            raise ValueError(
                f"two_tower.models is {list(models)}; 2T-HGNN must be among them, it is what is released"
            )
        return models

    @model_validator(mode="after")
    def _prior_needs_softmax(self) -> TwoTowerSettings:
        if self.popularity_prior and self.loss == "inverse_propensity":
            raise ValueError(
                "two_tower.loss is inverse_propensity, which bounds no score of its own and so never leaves a popularity "
                "prior; set two_tower.popularity_prior = false with it, or two_tower.loss = softmax"
            )
        return self


class Evaluation(Group):
    hit_k: int = setting(10, "HR@k", origin="paper", gt=0)
    depth: int = setting(100, "MRR and coverage look at this many titles", origin="paper", gt=0)
    max_users: int = setting(20_000, "test users; a seeded sample beyond", unit="users", gt=0)
    bootstrap: int = setting(1_000, "resamples behind an interval", gt=0)
    min_segment_users: int = setting(200, "smaller segments are shown and never judged", unit="users", gt=0)
    popularity_windows: tuple[int, ...] = setting(
        (7, 14, 30, 60), "recent-popularity windows tried on validation", unit="days", min_length=1
    )
    seed: int = setting(1, "random seed of sampling and bootstrap")


class Scarcity(Group):
    """For experiments: what if the new catalogue were younger still."""

    share: float = setting(
        1.0, "share of the user-audiobook pairs streamed before the split that is kept", gt=0, le=1
    )
    seed: int = setting(1, "seed of the hash that says which; a smaller share is part of a larger one")


class Rivals(Group):
    """Other recommenders that experiments compare with; hyperparameters in brackets are tried on validation."""

    models: tuple[str, ...] = setting((), "those that are run, by the names tables show; empty for all")
    item_knn_shrinkage: tuple[float, ...] = setting(
        (10.0, 30.0, 100.0), "item-kNN: pseudo-users", unit="users", min_length=1
    )
    ease_ridge: tuple[float, ...] = setting(
        (300.0, 1_000.0, 3_000.0), "EASE: L2 on the item weights", min_length=1
    )
    als_factors: int = setting(128, "ALS (implicit)", gt=0)
    als_regularization: tuple[float, ...] = setting((0.1, 10.0, 100.0), "ALS: L2", min_length=1)
    bpr_factors: int = setting(64, "BPR (implicit)", gt=0)
    bpr_iterations: int = setting(100, "BPR: passes", gt=0)
    lightgcn_dim: int = setting(64, "LightGCN (PyG)", gt=0)
    lightgcn_layers: int = setting(2, "LightGCN: layers", gt=0)
    lightgcn_epochs: int = setting(20, "LightGCN: at most; the best on validation is kept", gt=0)
    user_graph_dim: int = setting(128, "HGNN-w-users: length of an embedding", gt=0)
    user_graph_steps: int = setting(80, "HGNN-w-users: at most; the best on validation is kept", gt=0)
    gbdt_trees: tuple[int, ...] = setting(
        (10, 20, 40, 80, 160, 320), "boosted ranker (LightGBM): trees", min_length=1
    )
    gbdt_negatives: int = setting(100, "boosted ranker: titles not chosen, a target", gt=0)
    gbdt_targets: int = setting(4_000, "boosted ranker: training targets, evenly spread", gt=0)
    seed: int = setting(1, "random seed")


class Analysis(Group):
    """What the source tables say of their users, before any model: section 3 of the paper."""

    pairs: int = setting(
        10_000, "pairs drawn a comparison, as many at random beside them", origin="paper", gt=1
    )
    bootstrap: int = setting(500, "draws of an interval", gt=0)
    genres: int = setting(8, "genres in the co-occurrence matrix, the most streamed; others together", gt=1)
    min_users: int = setting(5, "fewer users behind a figure, and it is withheld", unit="users", ge=1)
    odds_rows: int = setting(
        10_000_000, "user days in the regressions; beyond that a sample of the listeners", gt=0
    )
    seed: int = setting(1, "random seed of pairs, samples and intervals")


class Index(Group):
    exact_limit: int = setting(500_000, "titles up to which the index is exact", gt=0)
    hnsw_m: int = setting(32, "links a node of the approximate index", gt=1)
    ef_construction: int = setting(100, "effort when building", origin="measured", gt=1)
    ef_search: int = setting(
        128, "effort when searching, doubled until min_recall is reached", origin="measured", gt=1
    )
    max_ef_search: int = setting(2048, "... but not beyond this", gt=1)
    min_recall: float = setting(
        0.95, "recall@100 against exact, below which the release is refused", gt=0, le=1
    )
    recall_queries: int = setting(500, "queries behind the recall figure", gt=0)


class Release(Group):
    model_name: str = setting("audiobook_recommender", "registered model in MLflow")
    policy: PromotePolicy = setting("fresh", "what the gate does with an A/A candidate")
    min_ratio: float = setting(0.9, "HR@10 over the median of the last promoted versions, at least", gt=0)
    history: int = setting(14, "promoted versions behind that median", unit="versions", gt=0)
    min_coverage: float = setting(0.0, "coverage@100 below which the candidate is insane", ge=0, le=1)

    @field_validator("model_name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"release.model_name is {name!r}; use letters, digits, - and _")
        return name


class Settings(BaseSettings):
    """Everything a run needs to know, besides its date."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="AUDIOREC_", env_nested_delimiter="__", validate_default=True
    )

    profile: Profile = setting(
        "standard", "amount of work: smoke (minutes), standard, full (longer training)"
    )
    recipe: Recipe = setting("default", "the default configuration or the paper's")

    source: Source = Field(default_factory=Source)
    store: StoreSettings = Field(default_factory=StoreSettings)
    mlflow: MLflow = Field(default_factory=MLflow)
    alerts: Alerts = Field(default_factory=Alerts)
    services: Services = Field(default_factory=Services)
    serving: Serving = Field(default_factory=Serving)
    resources: dict[str, TaskResources] = Field(default_factory=_resources)
    duckdb: DuckDB = Field(default_factory=DuckDB)
    privacy: Privacy = Field(default_factory=Privacy)

    time: Time = Field(default_factory=Time)
    extract: Extract = Field(default_factory=Extract)
    validation: Validation = Field(default_factory=Validation)
    text: Text = Field(default_factory=Text)
    music: Music = Field(default_factory=Music)
    graph: Graph = Field(default_factory=Graph)
    hgnn: HGNN = Field(default_factory=HGNN)
    two_tower: TwoTowerSettings = Field(default_factory=TwoTowerSettings)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    scarcity: Scarcity = Field(default_factory=Scarcity)
    rivals: Rivals = Field(default_factory=Rivals)
    analysis: Analysis = Field(default_factory=Analysis)
    index: Index = Field(default_factory=Index)
    release: Release = Field(default_factory=Release)

    @field_validator("resources", mode="before")
    @classmethod
    def _complete_resources(cls, given: Any) -> Any:
        """A file may name one task only: the others keep their defaults."""
        if not isinstance(given, Mapping):
            return given
        defaults = _resources()
        unknown = sorted(set(given) - set(defaults))
        if unknown:
            raise ValueError(f"resources names unknown tasks {unknown}; known: {sorted(defaults)}")
        merged: dict[str, Any] = dict(defaults)
        for name, value in given.items():
            merged[name] = {**defaults[name].model_dump(), **value} if isinstance(value, Mapping) else value
        return merged

    def slice(self, groups: tuple[str, ...]) -> dict[str, Any]:
        """The named *what* groups as plain JSON, for a fingerprint.

        Raises ValueError for a *where* group: those must never be hashed.
        """
        wrong = WHERE.intersection(groups)
        if wrong:
            raise ValueError(f"{sorted(wrong)} say where a run works and must not enter a fingerprint")
        dumped = self.model_dump(mode="json")
        return {group: dumped[group] for group in sorted(groups)}


PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "smoke": {
        "hgnn": {"max_epochs": 4, "edges_per_epoch": 12_000, "patience": 2},
        "two_tower": {"epochs": 4, "patience": 2},
        "evaluation": {"bootstrap": 200, "max_users": 3_000},
    },
    "standard": {},
    "full": {"hgnn": {"edges_per_epoch": None}},
}


def _merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key, {})
            # What is no group where one belongs stays, for the validation to name.
            if isinstance(value, Mapping) and isinstance(below, Mapping):
                merged[key] = _merge(below, value)
            elif isinstance(value, Mapping):
                continue
            else:
                merged[key] = value
    return merged


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadSettings(
            f"settings file {path} does not exist; check --settings or {SETTINGS_VARIABLE}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise BadSettings(f"settings file {path} is not valid TOML: {error}") from None


def load_settings(path: str | Path | None = None, profile: str | None = None, **overrides: Any) -> Settings:
    """Read the settings of a run.

    Args:
        path: TOML file; by default the one that AUDIOREC_SETTINGS names, else none.
        profile: amount of work; by default what the environment or the file says.
        overrides: nested dictionaries by group, the strongest layer.

    Raises:
        BadSettings: unknown key, wrong type or value out of range, with the setting's name.
    """
    named = path or os.environ.get(SETTINGS_VARIABLE)
    from_file = _read_toml(Path(named)) if named else {}
    from_environment = _environment()
    chosen = (
        profile
        or overrides.get("profile")
        or from_environment.get("profile")
        or from_file.get("profile", "standard")
    )
    recipe = overrides.get("recipe") or from_environment.get("recipe") or from_file.get("recipe", "default")
    if not isinstance(chosen, str) or chosen not in PROFILES:
        raise BadSettings(f"profile is {chosen!r}, expected one of {sorted(PROFILES)}")
    preset = PRESETS / f"{recipe}.toml"
    from_preset = _read_toml(preset) if preset.exists() else {}
    values = _merge(
        from_preset, from_file, PROFILES[chosen], {"profile": chosen}, from_environment, overrides
    )
    values["profile"] = chosen
    try:
        return _FileSettings(**values)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(str(part) for part in e['loc'])}: {e['msg']} (found {e['input']!r})"
            for e in error.errors()
        ]
        origin = f"settings file {named}" if named else "the settings"
        raise BadSettings(f"{origin} or the AUDIOREC_ environment is wrong:\n" + "\n".join(lines)) from None


def settings_of_environment() -> Settings:
    """What the AUDIOREC_ variables say, over the defaults, whatever is wrong with the settings file.

    The services are told where they are, and where alerts go, by such variables: they are known without the file.

    Raises:
        BadSettings: they are wrong as well.
    """
    try:
        return _FileSettings(**_environment())
    except ValidationError as error:
        raise BadSettings(f"the AUDIOREC_ environment is wrong: {error}") from None


def as_toml(settings: Settings) -> str:
    """All settings as a TOML file that gives them back: the profile's values are in it, so it names none."""
    dumped = settings.model_dump(mode="json")
    dumped.pop("profile")
    lines = [f"recipe = {json.dumps(dumped.pop('recipe'))}"]
    for group, values in dumped.items():
        tables = {f"resources.{task}": limits for task, limits in values.items()}
        for name, fields in (tables if group == "resources" else {group: values}).items():
            lines.append(f"[{name}]")
            lines += [f"{k} = {json.dumps('none' if v is None else v)}" for k, v in fields.items()]
    return "\n".join(lines) + "\n"


class _FileSettings(Settings):
    """Settings whose layers were merged already: nothing else is read."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def _environment() -> dict[str, Any]:
    """The AUDIOREC_ variables as nested values, parsed by pydantic-settings."""
    known = {SETTINGS_VARIABLE, KEYS_VARIABLE, "AUDIOREC_RESULT", "AUDIOREC_PROGRESS"}
    groups = {name.upper() for name in Settings.model_fields}
    unknown = [
        name
        for name in os.environ
        if name.startswith("AUDIOREC_") and name not in known and name[9:].split("__")[0] not in groups
    ]
    if unknown:
        raise BadSettings(
            f"unknown environment settings {sorted(unknown)}; expected AUDIOREC_<GROUP>__<FIELD>"
        )
    try:
        return EnvSettingsSource(Settings)()
    except SettingsError as error:
        raise BadSettings(
            f"the AUDIOREC_ environment is wrong: {error} ({error.__cause__}); lists and groups are written as JSON, "
            "such as AUDIOREC_HGNN__FANOUTS=[10,5]"
        ) from None
