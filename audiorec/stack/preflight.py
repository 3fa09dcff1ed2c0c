"""What can be known to go wrong before anything is started, each with its remedy."""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import sys
from pathlib import Path

import psutil

from audiorec.settings import Settings
from audiorec.stack.layout import DAG_ID, PROJECT, Layout, StackError, serves_mlflow

MIN_DISK_MB = 3_000
MIN_MEMORY_MB = 2_500
"""Services and a small training; how much a large one needs is what its own limit is for."""

PACKAGES = {"apache-airflow": "3.3", "mlflow": "3.17"}


def preflight(settings: Settings) -> None:
    """Check Python, packages, disk, memory and ports, all of them, and say all that is wrong.

    Raises:
        StackError: with one line a problem, each with its remedy.
    """
    problems = [
        *python_problems(),
        *package_problems(),
        *disk_problems(Layout.of(settings).home),
        *memory_problems(),
        *port_problems(settings),
    ]
    if problems:
        raise StackError("the services cannot be started:\n- " + "\n- ".join(problems))


def python_problems() -> list[str]:
    if sys.version_info[:2] != (3, 11):
        found = ".".join(map(str, sys.version_info[:3]))
        return [f"Python is {found}, expected 3.11. Make the environment anew with python3.11 (`make setup`)"]
    return []


def package_problems() -> list[str]:
    problems = []
    for package, expected in PACKAGES.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{package} is not installed in {sys.prefix}. Run `make setup`")
            continue
        if not found.startswith(f"{expected}."):
            problems.append(f"{package} is {found}, expected {expected}.*. Run `make setup` again")
    dag_file = PROJECT / "dags" / f"{DAG_ID}.py"
    if not dag_file.exists():
        problems.append(f"{dag_file} is missing. The services run from a clone, installed with pip's -e")
    return problems


def disk_problems(home: Path) -> list[str]:
    place = home
    while not place.exists():
        place = place.parent
    free_mb = shutil.disk_usage(place).free // 2**20
    if free_mb < MIN_DISK_MB:
        return [
            f"{place} has {free_mb} MiB of disk left, expected {MIN_DISK_MB}. Free some, or put "
            "services.home (AUDIOREC_SERVICES__HOME) and the store on another disk"
        ]
    return []


def memory_problems() -> list[str]:
    free_mb = psutil.virtual_memory().available // 2**20
    if free_mb < MIN_MEMORY_MB:
        return [f"the machine has {free_mb} MiB of memory left, expected {MIN_MEMORY_MB}. Close programs"]
    return []


def port_problems(settings: Settings) -> list[str]:
    services = settings.services
    wanted = {"airflow_port": services.airflow_port, "serving_port": services.serving_port}
    if serves_mlflow(settings):
        wanted["mlflow_port"] = services.mlflow_port
    problems = []
    for port in sorted(set(wanted.values())):
        same = [f"services.{name}" for name, number in wanted.items() if number == port]
        if len(same) > 1:
            problems.append(f"{' and '.join(same)} are both {port}")
    if problems:
        return problems
    for name, port in wanted.items():
        if not port_is_free(services.host, port):
            problems.append(
                f"port {port} ({services.host}) is taken by {who_listens(port)}. Stop that, or set "
                f"services.{name} (for example AUDIOREC_SERVICES__{name.upper()}={port + 1})"
            )
    return problems


def port_is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the servers do: a port that only waits for old connections to fade is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def who_listens(port: int) -> str:
    """The process that listens on a port, as far as we are allowed to see it."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f"process {process.pid} ({' '.join(process.cmdline())[:120]})"
    except psutil.Error:
        pass
    return "another process (not one of ours to see)"
