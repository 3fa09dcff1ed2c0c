"""The pages behind Airflow's login and roles: its word on who is there and what they may."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import get_user, requires_access_dag
from airflow.configuration import conf
from fastapi import Depends, FastAPI, HTTPException, Request

from audiorec.settings import load_settings
from audiorec.stack.layout import DAG_ID
from serving.pages.access import Person
from serving.pages.app import create_pages

ROLLBACK_DAG_ID = "audiobook_rollback"

_may_look = requires_access_dag("GET", param_dag_id=DAG_ID)
_may_release = requires_access_dag("POST", DagAccessEntity.RUN, param_dag_id=ROLLBACK_DAG_ID)


def who(request: Request, user: Any = Depends(get_user)) -> Person:
    """Whoever may see the daily DAG may look; whoever may trigger the rollback's DAG may move a release."""
    _may_look(request, user)
    try:
        _may_release(request, user)
    except HTTPException:
        return Person(str(user.get_name()), may_release=False)
    return Person(str(user.get_name()), may_release=True)


def login(request: Request) -> str:
    """The login's address, which leads back to where somebody wanted to go."""
    ui = conf.get("api", "base_url", fallback="").rstrip("/")
    return f"{ui}/auth/login/?next={ui}{request.url.path}"


def create() -> FastAPI:
    """The application, with the settings of the process and the secret that all of Airflow's API servers share."""
    return create_pages(load_settings(), who, conf.get("api", "secret_key"), login)
