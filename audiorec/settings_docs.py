"""`docs/settings.md`, written from the settings themselves; `COMMAND` below is how.

A test compares the committed page with what this module prints, so a new field cannot stay undocumented.
"""

from __future__ import annotations

import tomllib
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from audiorec.chain import TASKS
from audiorec.settings import PRESETS, PROFILES, WHERE, Recipe, Settings, TaskResources

COMMAND = "python -m audiorec.settings_docs > docs/settings.md"

HEAD = f"""# Settings

<!-- Generated. Do not edit: change audiorec/settings.py, then run `{COMMAND}`. -->

All settings live in one place, `audiorec/settings.py`. A run takes them from these layers; a lower line wins:

1. the defaults below;
2. the recipe's preset, `audiorec/presets/RECIPE.toml`, if there is one;
3. your TOML file, named by `--settings FILE.toml` or by the variable `AUDIOREC_SETTINGS`;
4. the profile's overlay (`--profile`, or the Param `profile` in Airflow);
5. environment variables: `AUDIOREC_<GROUP>__<FIELD>`, for example `AUDIOREC_TIME__WINDOW_DAYS=60`.

Commands that look at what is there (`status`, `recommend`, `rollback`, `history`, `backfill`, `forget`, `watch` and so on)
and are given no file take the file, the tables and the store of the services that run here.

`none` below means that nothing is set; a TOML file cannot say it, so leave the field out. A TOML file has one
table a group:

```toml
[source]
uri = "tables"

[time]
window_days = "all"
holdout_days = 31
```

An unknown group or field is an error that names it. So is a value of the wrong type or out of range.

**Where and what.** Groups marked *where* say where and how a run works: addresses, folders, memory, threads.
They never change a result and never enter a fingerprint. Groups marked *what* are hashed by the tasks named
beside them: change a value there, and those tasks and everything that reads them are computed again.

**Origin** says where a default comes from. *paper*: the paper gives it. *measured*: a measurement on this
project's development data chose it. *choice*: the paper is silent, or there is nothing to measure yet.
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD, *_top(), *_profiles(), *_presets()]
    for name, field in Settings.model_fields.items():
        if name in ("profile", "recipe"):
            continue
        parts += _resources() if name == "resources" else _group(name, field)
    return "\n".join(parts).rstrip() + "\n"


def documented_fields() -> Iterator[tuple[str, str]]:
    """(group, field) of every setting that the page must name; top-level ones have the group ''."""
    for name, field in Settings.model_fields.items():
        model = _model_of(field)
        if model is None and name != "resources":
            yield "", name
        for inner in (model or TaskResources).model_fields if model or name == "resources" else ():
            yield name, inner


def _top() -> list[str]:
    fields = {name: Settings.model_fields[name] for name in ("profile", "recipe")}
    text = (
        "These two stand above the groups, at the top of the TOML file (`AUDIOREC_PROFILE`, "
        "`AUDIOREC_RECIPE`). They choose values of other fields and are not hashed themselves."
    )
    return ["## Profile and recipe", "", text, "", *_table(fields)]


def _profiles() -> list[str]:
    lines = ["What each profile changes:", "", "| profile | sets |", "|---|---|"]
    for profile, overlay in PROFILES.items():
        found = ", ".join(f"`{key} = {_toml(value)}`" for key, value in _flat(overlay)) or "nothing"
        lines.append(f"| {profile} | {found} |")
    return [*lines, ""]


def _presets() -> list[str]:
    lines: list[str] = []
    for recipe in get_args(Recipe):
        file = PRESETS / f"{recipe}.toml"
        if not file.exists():
            continue
        values = dict(_flat(tomllib.loads(file.read_text(encoding="utf-8"))))
        lines += [f"What the recipe `{recipe}` sets:", "", "| setting | value |", "|---|---|"]
        lines += [f"| `{key}` | `{_toml(value)}` |" for key, value in sorted(values.items())] + [""]
    return lines


def _group(name: str, field: FieldInfo) -> list[str]:
    model = _model_of(field)
    assert model is not None, f"settings.{name} is not a group"
    lines = [f"## {name}", "", _hashed_by(name), ""]
    return [*lines, *_table(model.model_fields)]


def _hashed_by(group: str) -> str:
    if group in WHERE:
        return "*Where*: not hashed."
    tasks = ", ".join(f"`{task.name}`" for task in TASKS.values() if group in task.settings)
    return f"*What*: hashed by {tasks}." if tasks else "*What*: no task hashes it."


def _resources() -> list[str]:
    defaults = Settings.model_fields["resources"].get_default(call_default_factory=True)
    lines = [
        "## resources",
        "",
        "*Where*: not hashed. One table a task, `[resources.TASK]`; what is left out keeps its default.",
        "",
        *_table(TaskResources.model_fields, with_defaults=False),
        "Defaults:",
        "",
        "| task | memory_mb | threads | timeout_minutes |",
        "|---|---:|---:|---:|",
    ]
    for task, limits in defaults.items():
        lines.append(f"| {task} | {limits.memory_mb:,} | {limits.threads} | {limits.timeout_minutes:g} |")
    return [*lines, ""]


def _table(fields: Mapping[str, FieldInfo], with_defaults: bool = True) -> list[str]:
    default_heading = " default |" if with_defaults else ""
    lines = [
        f"| field |{default_heading} type | unit | origin | what it is |",
        "|---|" + ("---|" if with_defaults else "") + "---|---|---|---|",
    ]
    for name, field in fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        cells = [f"`{name}`"]
        if with_defaults:
            cells.append(f"`{_toml(field.get_default(call_default_factory=True))}`")
        kind = _type(field.annotation)
        limits = _limits(field)
        cells += [
            f"{kind}, {limits}" if limits else kind,
            str(extra.get("unit", "")),
            str(extra.get("origin", "")),
            (field.description or "").replace("|", "\\|"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _model_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _type(kind: Any) -> str:
    """An annotation in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " / ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join("none" if one is type(None) else _type(one) for one in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    return {int: "integer", float: "number", str: "text", bool: "true / false"}.get(kind, str(kind.__name__))


def _limits(field: FieldInfo) -> str:
    words = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = []
    for limit in field.metadata:
        for name, sign in words.items():
            if hasattr(limit, name):
                found.append(f"{sign} {getattr(limit, name):g}")
    return ", ".join(found)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _toml(value: Any) -> str:
    """A value as one writes it in the file; `none` for what a file leaves out."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return str(value)


if __name__ == "__main__":
    print(page(), end="")
