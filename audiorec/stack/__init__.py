"""The services of the embedded default, on this machine only: Airflow's four processes and MLflow's server.

`start`, `stop` and `status` are all that the command line needs; `client` talks to what runs, `watch`
shows it. Not `airflow standalone`: measured, it leaves its children behind when stopped, binds every
interface and prints its password.
"""

from __future__ import annotations

from audiorec.stack.control import Status, start, status, stop
from audiorec.stack.layout import Login, StackError, login

__all__ = ["Login", "StackError", "Status", "login", "start", "status", "stop"]
