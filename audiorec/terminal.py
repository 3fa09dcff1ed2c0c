"""What the command line's modules share: consoles, common options, and failures as plain sentences."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from audiorec.errors import AudiorecError
from audiorec.settings import SETTINGS_VARIABLE, Settings, load_settings

# In a log there is no window to fit: a fixed width keeps tables whole.
console = Console(width=None if sys.stdout.isatty() else 118)
errors = Console(stderr=True)

SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", help=f"TOML file of settings (default: the variable {SETTINGS_VARIABLE})."),
]
Profile = Annotated[str | None, typer.Option(help="Amount of work: smoke, standard or full.")]
AsOf = Annotated[datetime, typer.Option("--as-of", formats=["%Y-%m-%d"], help="Last day of data, UTC.")]


def add_row(table: Table, *cells: str) -> None:
    """A row of plain text: what people typed may hold brackets, which rich would take for its own."""
    table.add_row(*map(escape, cells))


@contextmanager
def plain_errors() -> Iterator[None]:
    """Expected failures end with their message and exit code; a traceback would only hide them."""
    from audiorec.stack.client import AirflowError
    from audiorec.stack.layout import StackError

    try:
        yield
    except AudiorecError as error:
        errors.print(f"[red]{type(error).__name__}:[/red] ", end="")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(int(error.exit_code)) from None
    except (StackError, AirflowError, TimeoutError) as error:
        errors.print("[red]cannot go on:[/red] ", end="")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def settings_of(path: Path | None, profile: str | None = None, **overrides: Any) -> Settings:
    """The settings as a command means them: with the address of the MLflow that `audiorec up` runs."""
    settings = load_settings(path, profile, **overrides)
    if "mlflow" not in overrides:
        from audiorec.stack.layout import mlflow_address

        settings = load_settings(path, profile, **overrides, mlflow={"uri": mlflow_address(settings)})
    return settings


def settings_in_use(path: Path | None, profile: str | None = None) -> Settings:
    """The settings for looking at what is there: those of the services that run here, unless others are named.

    So `audiorec status` and `audiorec recommend` answer about what `make demo` or `make run SOURCE=... SETTINGS=...` has
    started, without being told all of it again.
    """
    overrides: dict[str, Any] = {}
    if path is None and SETTINGS_VARIABLE not in os.environ:
        from audiorec.stack.control import started_with

        path, told = started_with(load_settings())
        for group, values in told.items():
            if not any(name.startswith(f"AUDIOREC_{group.upper()}") for name in os.environ):
                overrides[group] = values
    return settings_of(path, profile, **overrides)


def settings_as_started(path: Path | None, profile: str | None = None) -> tuple[Settings, Path | None]:
    """The settings for starting the services again, and their file: those of the last start, unless others are named.

    The file is read anew, so a limit that was raised in it counts. On call nobody remembers what the services were
    started with, and the defaults would bring them back on the sample tables, without webhook and watchdog.
    """
    if path is None and SETTINGS_VARIABLE not in os.environ:
        from audiorec.stack.control import last_start

        last = last_start(load_settings())
        if last is not None:
            for name, value in last.variables.items():
                os.environ.setdefault(name, value)
            overrides = {} if last.source is None else {"source": {"uri": last.source}}
            settings = settings_of(last.settings_file, profile, **overrides)
            console.print(
                f"as last started here: settings {last.settings_file or 'by default'}, source tables {settings.source.uri}; "
                "name others with --settings FILE",
                highlight=False,
                soft_wrap=True,
            )
            return settings, last.settings_file
    return settings_of(path, profile), path
