"""What services are told, and what is said before they are started."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from audiorec.settings import Settings, load_settings
from audiorec.stack import control, layout, preflight
from audiorec.stack.layout import Layout, StackError
from audiorec.terminal import settings_as_started, settings_in_use


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        services={
            "home": str(tmp_path / "home"),
            "airflow_port": 18081,
            "mlflow_port": 15001,
            "serving_port": 18001,
        },
        source={"uri": "data/mine"},
    )


@pytest.fixture
def env(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    Layout.of(settings).make()
    base = {
        "PATH": "/usr/bin",
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AUDIOREC_SOURCE__URI": "elsewhere",
        "AUDIOREC_HGNN__MARGIN": "0.3",
        "no_proxy": "intranet",
    }
    return layout.environment(settings, "stack-1", settings_file=Path("mine.toml"), base=base)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_every_service_is_on_loopback_and_knows_its_address(env: dict[str, str]):
    assert env["AIRFLOW__API__HOST"] == "127.0.0.1"
    assert env["AIRFLOW__API__BASE_URL"] == "http://127.0.0.1:18081"
    assert env["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"] == "http://127.0.0.1:18081/execution/"
    assert env["AIRFLOW__CORE__EXECUTOR"] == "LocalExecutor"  # whatever the shell says
    assert env["AIRFLOW__CORE__PARALLELISM"] == "4"
    assert env["no_proxy"] == "intranet,127.0.0.1,::1,localhost"


def test_log_servers_which_bind_everything_are_off(settings: Settings):
    commands = control.components(settings)
    assert set(commands) == {"mlflow", "api-server", "scheduler", "dag-processor", "triggerer", "serving"}
    for name in ("scheduler", "triggerer"):
        assert "--skip-serve-logs" in commands[name]
    for name in ("mlflow", "api-server"):
        assert commands[name][commands[name].index("--host") + 1] == "127.0.0.1"


def test_tasks_are_told_where_and_the_rest_comes_from_file_and_environment(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert json.loads(env["AUDIOREC_SOURCE"]) == {"uri": str(tmp_path / "data/mine"), "target": "audiobook"}
    assert "AUDIOREC_SOURCE__URI" not in env  # the settings as given win over the shell
    assert json.loads(env["AUDIOREC_MLFLOW"])["uri"] == "http://127.0.0.1:15001"  # our own port
    assert env["AUDIOREC_HGNN__MARGIN"] == "0.3"
    assert env["AUDIOREC_SETTINGS"] == str(tmp_path / "mine.toml")
    # And they can read it: the same settings come out in the task.
    (tmp_path / "mine.toml").write_text("[hgnn]\nnegatives = 3\n")
    for name in [name for name in os.environ if name.startswith("AUDIOREC_")]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        if name.startswith("AUDIOREC_"):
            monkeypatch.setenv(name, value)
    there = load_settings()
    assert there.source.uri == str(tmp_path / "data/mine")
    assert (there.hgnn.negatives, there.hgnn.margin) == (3, 0.3)


def test_object_stores_stay_addresses(tmp_path: Path):
    settings = load_settings(services={"home": str(tmp_path)}, store={"uri": "s3://bucket/store"})
    Layout.of(settings).make()
    env = layout.environment(settings, "x", base={})
    assert json.loads(env["AUDIOREC_STORE"])["uri"] == "s3://bucket/store"


def test_an_mlflow_elsewhere_is_used_and_not_started(tmp_path: Path):
    settings = load_settings(services={"home": str(tmp_path)}, mlflow={"uri": "https://mlflow.example.org"})
    assert layout.mlflow_address(settings) == "https://mlflow.example.org"
    assert "mlflow" not in control.components(settings)


def test_secrets_are_made_once_and_for_the_owner_only(settings: Settings, env: dict[str, str]):
    home = Layout.of(settings)
    assert mode(home.run) == 0o700
    for name in ("secrets.json", "airflow-passwords.json"):
        assert mode(home.run / name) == 0o600
    again = layout.environment(settings, "stack-2", base={})
    for name in ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API__SECRET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET"):
        assert len(env[name]) >= 40
        assert again[name] == env[name]
    assert len(layout.login(settings).password) >= 12


def test_login_before_any_start_says_what_to_do(tmp_path: Path):
    with pytest.raises(StackError, match="start the services first"):
        layout.login(load_settings(services={"home": str(tmp_path / "nothing")}))


def test_the_same_settings_are_the_same_configuration(settings: Settings, tmp_path: Path):
    Layout.of(settings).make()
    first = control._digest(layout.environment(settings, "a", base={}))
    assert control._digest(layout.environment(settings, "b", base={})) == first
    other = load_settings(services=settings.services.model_dump(), source={"uri": "data/other"})
    assert control._digest(layout.environment(other, "a", base={})) != first
    # A settings file counts with what is in it, not by its name.
    file = tmp_path / "mine.toml"
    file.write_text("[hgnn]\nnegatives = 3\n")
    named = control._digest(layout.environment(settings, "a", settings_file=file, base={}))
    file.write_text("[hgnn]\nnegatives = 4\n")
    assert control._digest(layout.environment(settings, "a", settings_file=file, base={})) != named


def test_a_taken_port_is_said_with_process_and_setting(settings: Settings):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        services = {**settings.services.model_dump(), "airflow_port": port}
        (problem,) = preflight.port_problems(load_settings(services=services))
    assert f"port {port} (127.0.0.1) is taken by process {os.getpid()} (" in problem
    assert f"AUDIOREC_SERVICES__AIRFLOW_PORT={port + 1}" in problem


def test_one_port_for_two_services(settings: Settings):
    services = {**settings.services.model_dump(), "mlflow_port": 18081}
    (problem,) = preflight.port_problems(load_settings(services=services))
    assert "both 18081" in problem


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = SimpleNamespace(total=2**40, used=2**40, free=100 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    (problem,) = preflight.disk_problems(tmp_path / "not/there/yet")
    assert "100 MiB of disk left, expected 3000" in problem
    assert "AUDIOREC_SERVICES__HOME" in problem


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500 * 2**20))
    (problem,) = preflight.memory_problems()
    assert "500 MiB of memory left, expected 2500" in problem


def test_wrong_python_and_missing_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(preflight.sys, "version_info", (3, 13, 1))
    assert preflight.python_problems() == [
        "Python is 3.13.1, expected 3.11. Make the environment anew with python3.11 (`make setup`)"
    ]
    monkeypatch.setattr(preflight, "PACKAGES", {"no-such-package": "1", "apache-airflow": "2.1"})
    monkeypatch.setattr(preflight, "PROJECT", tmp_path)
    problems = preflight.package_problems()
    assert [problem.split()[0] for problem in problems[:2]] == ["no-such-package", "apache-airflow"]
    assert "audiobook_recommender.py is missing" in problems[2]


def test_all_problems_are_said_at_once(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preflight, "disk_problems", lambda _: ["no disk"])
    monkeypatch.setattr(preflight, "memory_problems", lambda: ["no memory"])
    with pytest.raises(StackError, match="- no disk\n- no memory"):
        preflight.preflight(settings)


@pytest.fixture
def started(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Services that run (this process stands for their supervisor), started with a file, tables and a model of their own."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AUDIOREC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(control.MODEL_VARIABLE, "")  # so that it is as it was when the test is over
    monkeypatch.delenv(control.MODEL_VARIABLE)
    monkeypatch.setenv("AUDIOREC_SERVICES", json.dumps({"home": settings.services.home}))
    (tmp_path / "mine.toml").write_text("[time]\nwindow_days = 60\n", encoding="utf-8")
    where = Layout.of(settings)
    where.make()
    told = layout.environment(
        settings,
        "stack-1",
        settings_file=Path("mine.toml"),
        base={control.MODEL_VARIABLE: "of_the_demo"},
    )
    where.plan.write_text(json.dumps({"environment": told}), encoding="utf-8")
    me = {"pid": os.getpid(), "started": psutil.Process().create_time()}
    where.state.write_text(json.dumps({"supervisor": me}), encoding="utf-8")
    return settings


def test_commands_that_look_use_what_the_services_were_started_with(started: Settings, tmp_path: Path):
    found = settings_in_use(None)
    assert found.time.window_days == 60
    assert found.source.uri == str(tmp_path / "data" / "mine")
    assert found.release.model_name == "of_the_demo"


def test_what_is_named_wins_over_what_the_services_were_started_with(
    started: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(control.MODEL_VARIABLE, "another")
    monkeypatch.setenv("AUDIOREC_SOURCE__URI", "their/tables")
    assert settings_in_use(None).release.model_name == "another"
    assert settings_in_use(None).source.uri == "their/tables"
    (tmp_path / "other.toml").write_text("[time]\nwindow_days = 30\n", encoding="utf-8")
    assert settings_in_use(tmp_path / "other.toml").time.window_days == 30
    monkeypatch.setenv("AUDIOREC_SETTINGS", str(tmp_path / "other.toml"))
    assert settings_in_use(None).time.window_days == 30


def test_services_that_have_ended_say_nothing_of_the_settings(started: Settings):
    state = Layout.of(started).state
    state.write_text(json.dumps({"supervisor": {"pid": os.getpid(), "started": 1.0}}), encoding="utf-8")
    assert settings_in_use(None).release.model_name == load_settings().release.model_name
    assert settings_in_use(None).time.window_days == load_settings().time.window_days


def last_started(started: Settings, variables: dict[str, str], source: str | None) -> None:
    """Write down how the services that run were started, as `start` does."""
    plan = Layout.of(started).plan
    told = json.loads(plan.read_text(encoding="utf-8"))
    plan.write_text(json.dumps({**told, "variables": variables, "source": source}), encoding="utf-8")


@pytest.mark.parametrize("ended", [False, True])
def test_what_starts_the_services_again_starts_them_as_they_were(
    started: Settings, tmp_path: Path, ended: bool
):
    last_started(started, {control.MODEL_VARIABLE: "of_the_demo"}, "/their/tables")
    if ended:
        Layout.of(started).state.unlink()
    # Raised since: what is read is the file, not what it once said.
    (tmp_path / "mine.toml").write_text("[resources.train_hgnn]\nmemory_mb = 16000\n", encoding="utf-8")
    found, file = settings_as_started(None)
    assert file == tmp_path / "mine.toml"
    assert found.resources["train_hgnn"].memory_mb == 16_000
    assert found.source.uri == "/their/tables"
    assert found.release.model_name == "of_the_demo"


def test_a_source_that_the_file_names_may_change_in_it(started: Settings, tmp_path: Path):
    last_started(started, {}, None)
    (tmp_path / "mine.toml").write_text('[source]\nuri = "/moved"\n', encoding="utf-8")
    assert settings_as_started(None)[0].source.uri == "/moved"


def test_named_settings_start_the_services_otherwise(started: Settings, tmp_path: Path):
    last_started(started, {control.MODEL_VARIABLE: "of_the_demo"}, "/their/tables")
    (tmp_path / "other.toml").write_text("[time]\nwindow_days = 30\n", encoding="utf-8")
    found, file = settings_as_started(tmp_path / "other.toml")
    assert (found.time.window_days, file) == (30, tmp_path / "other.toml")
    assert found.source.uri == load_settings().source.uri
    assert found.release.model_name == load_settings().release.model_name


def test_without_a_start_before_the_defaults_count(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AUDIOREC_SERVICES", json.dumps({"home": settings.services.home}))
    assert settings_as_started(None)[0].source.uri == load_settings().source.uri
