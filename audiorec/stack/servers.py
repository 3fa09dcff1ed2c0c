"""Postgres, Redis and an S3 server on loopback, for `audiorec cluster`: what several machines would share.

Postgres and Redis come from the system's packages, S3 is moto's server, which keeps objects in memory: enough to see
the DAG run on Celery with a remote store, and no place to keep anything. They run under a supervisor of their own,
below `HOME/cluster`, so that Airflow can be restarted without them.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiorec.settings import Settings
from audiorec.stack.layout import STACK_VARIABLE, StackError, write_private
from audiorec.stack.processes import end, sweep
from audiorec.stack.supervisor import launch, read_state, supervisor_of

BUCKET = "audiorec"
DATABASE = "airflow"
START_SECONDS = 60.0
STOP_SECONDS = 20.0
PACKAGES = "apt-get install postgresql redis-server"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Servers:
    """Addresses and secrets of the three servers, made once and kept in a private file."""

    home: Path
    postgres_port: int
    redis_port: int
    s3_port: int
    password: str

    @property
    def database_url(self) -> str:
        return f"postgresql+psycopg2://{DATABASE}:{self.password}@127.0.0.1:{self.postgres_port}/{DATABASE}"

    @property
    def broker_url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.redis_port}/0"

    @property
    def environment(self) -> dict[str, str]:
        """What fsspec's S3 needs to find the server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.s3_port}",
            "AWS_ACCESS_KEY_ID": DATABASE,
            "AWS_SECRET_ACCESS_KEY": self.password,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def store_uri(self) -> str:
        return f"s3://{BUCKET}/store"

    @property
    def started_as(self) -> str | None:
        """A name of their present start, None while they are down. The store lives as long, and no longer."""
        state = read_state(self._state)
        return state["stack_id"][:8] if state and supervisor_of(state) else None

    @staticmethod
    def made_for(settings: Settings) -> bool:
        """Whether the settings' home ever had servers."""
        return (Path(settings.services.home) / "cluster" / "servers.json").exists()

    @classmethod
    def of(cls, settings: Settings) -> Servers:
        """Those of the settings' home; ports and the password are drawn the first time."""
        home = Path(settings.services.home).absolute() / "cluster"
        home.mkdir(parents=True, exist_ok=True)
        path = home / "servers.json"
        if not path.exists():
            ports = free_ports(3)
            write_private(path, json.dumps({"ports": ports, "password": secrets.token_hex(16)}))
        known = json.loads(path.read_text(encoding="utf-8"))
        postgres, redis, s3 = known["ports"]
        return cls(home, postgres, redis, s3, known["password"])

    # --- how they are run

    @property
    def _state(self) -> Path:
        return self.home / "state.json"

    def start(self, say: Say = print) -> None:
        """Bring the servers up, with an empty database and bucket the first time; nothing if they are up.

        Raises:
            StackError: a program is missing, or a server does not answer, with the end of its log.
        """
        state = read_state(self._state)
        if state and supervisor_of(state):
            return
        binaries = _postgres_folder()
        if shutil.which("redis-server") is None:
            raise StackError(f"redis-server is not there; on Debian: {PACKAGES}")
        logs = self.home / "logs"
        logs.mkdir(exist_ok=True)
        data = self._make_database(binaries)
        redis = self.home / "redis"
        redis.mkdir(exist_ok=True)
        configuration = redis / "redis.conf"
        write_private(
            configuration,
            f"bind 127.0.0.1\nport {self.redis_port}\nrequirepass {self.password}\ndir {redis}\nsave ''\nappendonly no\n",
        )
        services = {
            "postgres": [
                *_as_postgres(),
                str(binaries / "postgres"),
                *("-D", str(data), "-h", "127.0.0.1", "-p", str(self.postgres_port)),
                *("-c", f"unix_socket_directories={data}"),
            ],
            "redis": ["redis-server", str(configuration)],
            "s3": [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.s3_port)],
        }
        stack_id = uuid.uuid4().hex
        plan = {
            "stack_id": stack_id,
            "configuration": "",
            "home": str(self.home),
            "state": str(self._state),
            "logs": str(logs),
            "environment": {**os.environ, STACK_VARIABLE: stack_id},
            "prepare": [],
            "services": services,
            "patience_seconds": STOP_SECONDS / 2,
        }
        say("starting Postgres, Redis and an S3 server on this machine ...")
        launch(self.home / "plan.json", plan)
        self._wait(logs)
        self._make_rest(binaries)

    def stop(self) -> bool:
        """End the servers; whether there were any."""
        state = read_state(self._state)
        supervisor = supervisor_of(state) if state else None
        if supervisor is None or state is None:
            return False
        end([supervisor], STOP_SECONDS)
        sweep(state["stack_id"], [])
        self._state.unlink(missing_ok=True)
        return True

    def _make_database(self, binaries: Path) -> Path:
        """The data folder of Postgres, which refuses to run as root and wants the folder to be its own."""
        data = self.home / "postgres"
        if (data / "PG_VERSION").exists():
            return data
        data.mkdir(exist_ok=True)
        secret = data.with_suffix(".password")
        write_private(secret, self.password)
        if os.geteuid() == 0:
            shutil.chown(data, "postgres", "postgres")
            shutil.chown(secret, "postgres", "postgres")
        command = [
            *_as_postgres(),
            str(binaries / "initdb"),
            *("-D", str(data), "-U", DATABASE, "-A", "scram-sha-256", "--pwfile", str(secret)),
            *("-E", "UTF8", "--no-locale", "--no-instructions"),
        ]
        made = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
        secret.unlink(missing_ok=True)
        if made.returncode:
            shutil.rmtree(data, ignore_errors=True)
            raise StackError(
                f"Postgres could not make its data folder {data}: {made.stderr.strip()[-500:]}. Every folder above it must be "
                "one that the user postgres may pass through"
            )
        return data

    def _wait(self, logs: Path) -> None:
        ports = {"postgres": self.postgres_port, "redis": self.redis_port, "s3": self.s3_port}
        deadline = time.monotonic() + START_SECONDS
        for name, port in ports.items():
            while not _answers(port):
                if time.monotonic() > deadline:
                    tail = (logs / f"{name}.log").read_text(errors="replace")[-600:]
                    self.stop()
                    raise StackError(f"{name} does not answer on port {port}:\n{tail}")
                time.sleep(0.2)

    def _make_rest(self, binaries: Path) -> None:
        """Airflow's database and the bucket, if they are not there."""
        import fsspec

        options = ["-h", "127.0.0.1", "-p", str(self.postgres_port), "-U", DATABASE]
        environment: Mapping[str, str] = {**os.environ, "PGPASSWORD": self.password}
        for attempt in range(20):
            made = subprocess.run(
                [str(binaries / "createdb"), *options, DATABASE],
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            if made.returncode == 0 or "already exists" in made.stderr:
                break
            if attempt == 19:
                raise StackError(f"the database {DATABASE} could not be made: {made.stderr.strip()}")
            time.sleep(0.5)
        os.environ.update(self.environment)
        files = fsspec.filesystem("s3")
        if not files.exists(BUCKET):
            files.mkdir(BUCKET)


def cluster_settings(settings: Settings, servers: Servers, workers: int) -> dict[str, dict[str, Any]]:
    """The settings that make one machine's stack a cluster's: nothing but *where* groups."""
    return {
        "services": {
            **settings.services.model_dump(mode="json"),
            "database_url": servers.database_url,
            "broker_url": servers.broker_url,
            "workers": workers,
        },
        "store": {**settings.store.model_dump(mode="json"), "uri": servers.store_uri},
    }


def _as_postgres() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]


def _postgres_folder() -> Path:
    on_path = shutil.which("postgres")
    if on_path:
        return Path(on_path).resolve().parent
    # Debian keeps the servers of several versions beside one another, off the path.
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parent.parent.name)
    )
    if not found:
        raise StackError(f"Postgres is not there; on Debian: {PACKAGES}")
    return found[-1].parent


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens on now, all different."""
    held = [socket.socket() for _ in range(number)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
