"""Settings: every layer in its order, every field explained, every wrong value refused by name."""

from __future__ import annotations

import itertools
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from audiorec.chain import CHAIN, TASKS
from audiorec.errors import BadSettings
from audiorec.settings import PROFILES, WHERE, Settings, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("AUDIOREC_"):
            monkeypatch.delenv(name)


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return path


# --- layers ---------------------------------------------------------------------------------------------


def test_each_layer_is_stronger_than_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert load_settings().hgnn.max_epochs == 50
    path = toml(tmp_path, "[hgnn]\nmax_epochs = 7\nmargin = 0.2\nseed = 5\n")
    assert load_settings(path).hgnn.max_epochs == 7
    smoke = load_settings(path, profile="smoke").hgnn
    assert (smoke.max_epochs, smoke.margin) == (4, 0.2), "the profile's overlay changes its own fields only"
    monkeypatch.setenv("AUDIOREC_HGNN__MAX_EPOCHS", "9")
    assert load_settings(path, profile="smoke").hgnn.max_epochs == 9
    strongest = load_settings(path, profile="smoke", hgnn={"max_epochs": 11}).hgnn
    assert (strongest.max_epochs, strongest.margin, strongest.seed) == (11, 0.2, 5)


def test_the_file_that_the_environment_names_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AUDIOREC_SETTINGS", str(toml(tmp_path, "[time]\nholdout_days = 29\n")))
    assert load_settings().time.holdout_days == 29
    other = tmp_path / "other.toml"
    other.write_text("[time]\nholdout_days = 31\n")
    assert load_settings(other).time.holdout_days == 31


def test_environment_variables_of_every_kind(monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "PROFILE": "full",
        "TIME__WINDOW_DAYS": "all",
        "HGNN__FANOUTS": "[7, 3]",
        "HGNN__BALANCED": "false",
        "RESOURCES__EXTRACT__MEMORY_MB": "123",
        "SOURCE__URI": "/somewhere",
    }.items():
        monkeypatch.setenv(f"AUDIOREC_{name}", value)
    found = load_settings()
    assert (found.profile, found.time.window_days, found.hgnn.fanouts) == ("full", "all", (7, 3))
    assert not found.hgnn.balanced
    assert found.source.uri == "/somewhere"
    # One task of `resources` is named; it keeps its other fields, and the other tasks keep theirs.
    default = load_settings(resources={}).resources["validate"]
    assert found.resources["extract"].memory_mb == 123
    assert found.resources["extract"].timeout_minutes == 60
    assert found.resources["validate"] == default
    monkeypatch.setenv("AUDIOREC_TIME__WINDOW_DAYS", "30")
    assert load_settings().time.window_days == 30


def test_a_variable_that_only_the_launcher_reads_is_no_setting(monkeypatch: pytest.MonkeyPatch):
    for name in ("AUDIOREC_RESULT", "AUDIOREC_PROGRESS"):
        monkeypatch.setenv(name, "/some/file")
    load_settings()


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_profile_is_valid_and_says_its_name(profile: str):
    found = load_settings(profile=profile)
    assert found.profile == profile
    for group, fields in PROFILES[profile].items():
        for field, value in fields.items():
            assert getattr(getattr(found, group), field) == value


def test_settings_cannot_be_changed_afterwards():
    found = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        found.profile = "smoke"
    with pytest.raises(ValueError, match="frozen"):
        found.hgnn.seed = 2


# --- wrong values ---------------------------------------------------------------------------------------

WRONG = {
    "an unknown group": ("hgn = 1", r"hgn: Extra inputs are not permitted"),
    "an unknown key": ("[hgnn]\nlearning_rat = 1", r"hgnn\.learning_rat: Extra inputs are not permitted"),
    "text for a number": ('[hgnn]\nseed = "x"', r"hgnn\.seed: .*valid integer.*found 'x'"),
    "below its limit": ("[time]\nholdout_days = 0", r"time\.holdout_days: .*greater than 0 \(found 0\)"),
    "above its limit": ("[index]\nmin_recall = 1.5", r"index\.min_recall: .*less than or equal to 1"),
    "none of the choices": ('[hgnn]\naggregator = "min"', r"hgnn\.aggregator: .*'max', 'mean' or 'sum'"),
    "a window of no day": (
        "[time]\nwindow_days = 0",
        "time.window_days is 0, but must be at least 1, or 'all'",
    ),
    "a window of another word": ('[time]\nwindow_days = "al"', r"time\.window_days.*'all'.*found 'al'"),
    "validation over all targets": (
        "[time]\ntarget_days = 3",
        r"time\.validation_days is 3, but must be less than time\.target_days \(3\)",
    ),
    "fan-outs that do not fit": (
        "[hgnn]\nnum_layers = 1",
        r"hgnn\.fanouts has 2 entries, but hgnn\.num_layers is 1",
    ),
    "a fan-out of nothing": (
        "[hgnn]\nfanouts = [0, 5]",
        r"fanouts is \[0, 5\]; each number must be at least 1",
    ),
    "a tower without layers": ("[two_tower]\nlayers = []", r"two_tower\.layers: .*at least 1 item"),
    "a prior that the loss cannot leave": (
        '[two_tower]\nloss = "inverse_propensity"',
        r"set two_tower\.popularity_prior = false with it",
    ),
    "a model name with a slash": (
        '[release]\nmodel_name = "a/b"',
        r"release\.model_name is 'a/b'; use letters",
    ),
    "a number for a group": ("hgnn = 3", r"hgnn: .*found 3"),
    "a number for a task's resources": ("[resources]\nextract = 3", r"resources\.extract: .*found 3"),
    "resources of no task": (
        "[resources.extrac]\nmemory_mb = 3",
        r"resources names unknown tasks \['extrac'\]; known: \['analysis', 'build_graph'",
    ),
    "an unknown profile": (
        'profile = "quick"',
        r"profile is 'quick', expected one of \['full', 'smoke', 'standard'\]",
    ),
    "a list for the profile": ('profile = ["smoke"]', r"profile is \['smoke'\], expected one of"),
    "an unknown recipe": ('recipe = "mine"', r"recipe: .*'default' or 'paper' \(found 'mine'\)"),
    "no TOML": ("hgnn", r"settings\.toml is not valid TOML"),
}


@pytest.mark.parametrize(
    ("case", "profile"),
    # A profile given by hand wins over the file's, whatever that is.
    [(case, profile) for case in WRONG for profile in (None, "smoke") if not (profile and "profile" in case)],
)
def test_what_is_wrong_is_named(case: str, profile: str | None, tmp_path: Path):
    text, message = WRONG[case]
    path = toml(tmp_path, text)
    with pytest.raises(BadSettings, match=message) as raised:
        load_settings(path, profile=profile)
    assert str(path) in str(raised.value) or "profile" in text, "the message names the file"


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(
        BadSettings, match=r"settings file .*none\.toml does not exist; check --settings or AUDIOREC_SETTINGS"
    ):
        load_settings(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AUDIOREC_HGN__SEED", "1", r"unknown environment settings \['AUDIOREC_HGN__SEED'\]"),
        ("AUDIOREC_HGNN__SED", "1", r"hgnn\.sed: Extra inputs are not permitted"),
        ("AUDIOREC_HGNN__SEED", "one", r"hgnn\.seed: .*found 'one'"),
        ("AUDIOREC_HGNN__FANOUTS", "10,5", r"written as JSON, such as AUDIOREC_HGNN__FANOUTS=\[10,5\]"),
        ("AUDIOREC_HGNN", "{", r"written as JSON"),
        ("AUDIOREC_RESOURCES__EXTRACT", "3", r"resources\.extract: .*found 3"),
    ],
)
def test_a_wrong_environment_variable_is_named(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings, match=message):
        load_settings()


junk = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(allow_nan=False), st.text(max_size=3)
) | st.lists(st.integers(-1, 1), max_size=2)
group_names = st.sampled_from(sorted(Settings.model_fields))


@given(
    name=group_names, value=junk | st.dictionaries(st.text("abc", min_size=1, max_size=2), junk, max_size=2)
)
@hypothesis_settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_is_given_is_taken_or_refused_as_bad_settings(name: str, value: object):
    try:
        load_settings(profile="smoke", **{name: value} if name != "profile" else {})
    except BadSettings as error:
        assert name in str(error)


# --- what each field says -------------------------------------------------------------------------------


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        if not isinstance(annotation, types.GenericAlias) or argument is not annotation:
            yield from models_in(argument)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        inner = list(models_in(field.annotation))
        if not inner:
            yield f"{prefix}{name}", field
        for other in inner:
            yield from leaves(other, f"{prefix}{name}.")


def test_every_field_says_what_it_means_and_where_it_comes_from():
    found = dict(leaves(Settings))
    assert len(found) > 80
    assert {"time.window_days", "resources.memory_mb", "hgnn.margin", "profile"} <= set(found)
    for name, field in found.items():
        assert field.description, f"{name} has no description"
        extra = field.json_schema_extra
        assert isinstance(extra, dict), f"{name} was not made with setting()"
        assert extra["origin"] in ("paper", "measured", "choice"), name
        assert not field.is_required(), f"{name} has no default"
        if name.rsplit("_", 1)[-1] in ("days", "seconds", "minutes", "mb", "tokens"):
            assert extra["unit"] or "windows" in name, f"{name} has no unit"


def test_every_group_refuses_unknown_keys():
    groups = {model for field in Settings.model_fields.values() for model in models_in(field.annotation)}
    assert len(groups) > 12
    for model in groups | {Settings}:
        assert model.model_config["extra"] == "forbid", model.__name__
        assert model.model_config["frozen"], model.__name__


# --- what is hashed -------------------------------------------------------------------------------------


def test_a_slice_never_holds_what_says_where_a_run_works():
    found = load_settings()
    for group in WHERE:
        with pytest.raises(ValueError, match=f"'{group}'.* must not enter a fingerprint"):
            found.slice(("time", group))
    for task in CHAIN.values():
        assert not WHERE.intersection(task.settings), task.name


def test_every_what_group_is_hashed_by_a_task_and_every_task_names_groups_that_exist():
    used = set(itertools.chain.from_iterable(task.settings for task in TASKS.values()))
    assert used == set(Settings.model_fields) - WHERE - {"profile", "recipe"}


def test_a_slice_is_plain_json_of_just_the_groups_asked_for():
    import json

    found = load_settings().slice(("time", "hgnn"))
    assert list(found) == ["hgnn", "time"]
    assert json.loads(json.dumps(found)) == found
    assert found["hgnn"]["fanouts"] == [10, 5]
