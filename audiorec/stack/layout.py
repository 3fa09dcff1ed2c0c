"""Where the services keep their things, what they are told by environment, and their secrets."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from audiorec.settings import SETTINGS_VARIABLE, WHERE, Settings

PROJECT = Path(__file__).resolve().parents[2]
PLUGINS = PROJECT / "serving" / "plugins"
DAG_ID = "audiobook_recommender"
USER = "admin"
STACK_VARIABLE = "_AUDIOREC_STACK"
"""Every process of a stack carries its id in this variable; so what is ours can be told from what is not."""

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class StackError(RuntimeError):
    """The services cannot be started or stopped; the message says what is in the way and what to do."""


@dataclass(frozen=True)
class Layout:
    """The folders below the services' home."""

    home: Path

    @classmethod
    def of(cls, settings: Settings) -> Layout:
        return cls(Path(settings.services.home).absolute())

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def airflow(self) -> Path:
        return self.home / "airflow"

    @property
    def mlflow(self) -> Path:
        return self.home / "mlflow"

    @property
    def state(self) -> Path:
        """What runs: process ids with their start times, written by the supervisor."""
        return self.run / "state.json"

    @property
    def plan(self) -> Path:
        """What the supervisor is to run; holds secrets."""
        return self.run / "plan.json"

    @property
    def passwords(self) -> Path:
        return self.run / "airflow-passwords.json"

    @property
    def serving_keys(self) -> Path:
        """API keys of the recommendation service by the name of their holder."""
        return self.run / "serving-keys.json"

    def make(self) -> None:
        """Create the folders; only the owner may look into `run`."""
        for folder in (self.home, self.logs, self.airflow, self.mlflow):
            folder.mkdir(parents=True, exist_ok=True)
        self.run.mkdir(mode=0o700, exist_ok=True)
        self.run.chmod(0o700)


@dataclass(frozen=True)
class Login:
    """How to get into the Airflow UI."""

    user: str
    password: str


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner only from its first byte on."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def login(settings: Settings) -> Login:
    """The generated password of the Airflow UI.

    Raises:
        StackError: nothing was started here yet.
    """
    path = Layout.of(settings).passwords
    try:
        return Login(USER, json.loads(path.read_text(encoding="utf-8"))[USER])
    except (FileNotFoundError, KeyError, ValueError):
        raise StackError(f"{path} holds no password of {USER}; start the services first") from None


def ensure_secrets(layout: Layout) -> dict[str, str]:
    """Airflow's keys and the password, made once, so that a restart logs nobody out."""
    path = layout.run / "secrets.json"
    if path.exists():
        keys = json.loads(path.read_text(encoding="utf-8"))
    else:
        keys = {
            "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "secret_key": secrets.token_urlsafe(32),
            "jwt_secret": secrets.token_urlsafe(48),
        }
        write_private(path, json.dumps(keys))
    if not layout.passwords.exists():
        write_private(layout.passwords, json.dumps({USER: secrets.token_urlsafe(12)}))
    if not layout.serving_keys.exists():
        write_private(layout.serving_keys, json.dumps({"demo": secrets.token_urlsafe(24)}))
    return dict(keys)


def airflow_address(settings: Settings) -> str:
    return f"http://{settings.services.host}:{settings.services.airflow_port}"


def mlflow_address(settings: Settings) -> str:
    """Our own MLflow, or somebody else's if the settings name another machine."""
    if serves_mlflow(settings):
        return f"http://{settings.services.host}:{settings.services.mlflow_port}"
    return settings.mlflow.uri


def serving_address(settings: Settings) -> str:
    return f"http://{settings.services.host}:{settings.services.serving_port}"


def serves_mlflow(settings: Settings) -> bool:
    """Whether MLflow is ours to run: an address on this machine is."""
    return urlsplit(settings.mlflow.uri).hostname in LOOPBACK


def environment(
    settings: Settings,
    stack_id: str,
    *,
    settings_file: Path | None = None,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The environment of every service, and so of every task.

    Settings groups that say *where* (addresses, folders, limits) are handed on resolved, with absolute paths;
    the rest comes from the settings file and the AUDIOREC_ variables as they are now.
    """
    layout = Layout.of(settings)
    keys = ensure_secrets(layout)
    services = settings.services
    inherited = dict(os.environ if base is None else base)
    groups = tuple(f"AUDIOREC_{group.upper()}" for group in WHERE)
    env = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(("AIRFLOW_", "MLFLOW_")) and not name.startswith(groups)
    }
    env.update(_where(settings))
    if settings_file is not None:
        env[SETTINGS_VARIABLE] = str(settings_file.absolute())

    ui = airflow_address(settings)
    env |= {
        STACK_VARIABLE: stack_id,
        "AIRFLOW_HOME": str(layout.airflow),
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PLUGINS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor" if services.broker_url else "LocalExecutor",
        # Every worker is a process of its own from the start: 32, the default, cost 5 GB (measured).
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__FERNET_KEY": keys["fernet_key"],
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(layout.passwords),
        # Without it tasks look for the API on port 8080, wherever it really is.
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{ui}/execution/",
        "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": services.database_url
        or f"sqlite:///{layout.airflow / 'airflow.db'}",
        "AIRFLOW__API__HOST": services.host,
        "AIRFLOW__API__PORT": str(services.airflow_port),
        "AIRFLOW__API__BASE_URL": ui,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": keys["secret_key"],
        "AIRFLOW__API__INSTANCE_NAME": "Audiobook recommender",
        "AIRFLOW__API_AUTH__JWT_SECRET": keys["jwt_secret"],
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(layout.airflow / "logs"),
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        # Airflow turns every library's INFO on; these two print hundreds of lines of it.
        "AIRFLOW__LOGGING__NAMESPACE_LEVELS": "great_expectations=WARNING faiss=WARNING httpx=WARNING",
        # A killed task's run is noticed after this long instead of five minutes.
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
        "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "50",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GX_ANALYTICS_ENABLED": "false",
        "PYTHONUNBUFFERED": "1",
        # Our own bin first: MLflow starts programs by name.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
    }
    if services.broker_url and services.database_url:
        env |= {
            "AIRFLOW__CELERY__BROKER_URL": services.broker_url,
            # Celery knows SQLAlchemy's address by this prefix, and no driver of Airflow's.
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{services.database_url}",
            "AIRFLOW__CELERY__WORKER_CONCURRENCY": "2",
            # A worker that dies gives its tasks back at once instead of an hour later.
            "AIRFLOW__CELERY__TASK_ACKS_LATE": "True",
        }
    for name in ("NO_PROXY", "no_proxy"):
        # A company's proxy must not be asked for our own services.
        env[name] = ",".join(dict.fromkeys([*filter(None, env.get(name, "").split(",")), *sorted(LOOPBACK)]))
    return env


def _where(settings: Settings) -> dict[str, str]:
    """The *where* groups as JSON variables; folders made absolute, our MLflow's address by its port."""
    groups: dict[str, dict[str, Any]] = settings.model_dump(mode="json", include=set(WHERE))
    for group, field in (
        ("source", "uri"),
        ("store", "uri"),
        ("store", "scratch"),
        ("services", "home"),
        ("privacy", "key_file"),
    ):
        groups[group][field] = absolute(groups[group][field])
    for field in ("hidden_file", "forgotten_file"):
        if groups["serving"][field] is not None:
            groups["serving"][field] = absolute(groups["serving"][field])
    groups["mlflow"]["uri"] = mlflow_address(settings)
    return {f"AUDIOREC_{name.upper()}": json.dumps(value) for name, value in sorted(groups.items())}


def absolute(location: str) -> str:
    """A folder or file as seen from anywhere; an address as it is."""
    return location if "://" in location else str(Path(location).absolute())
