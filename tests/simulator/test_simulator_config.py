"""Presets and what wrong settings say."""

from __future__ import annotations

from datetime import date

import pytest

from audiorec.errors import BadSettings
from audiorec.simulator import PRESETS, DirtRates, SignalRates, SimulatorConfig, preset


def test_every_field_is_documented() -> None:
    for model in (SimulatorConfig, SignalRates, DirtRates):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


def test_first_day_and_overrides() -> None:
    config = preset("sample", seed=3, last_day=date(2026, 3, 1), days=29)
    # 2026 is no leap year: March 1 and the 28 days of February are 29 days.
    assert config.first_day == date(2026, 2, 1)
    assert config.seed == 3
    assert PRESETS["sample"].seed == 7


def test_settings_survive_json() -> None:
    for config in PRESETS.values():
        assert SimulatorConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("sampel", {}, r"preset 'sampel' is unknown; expected one of \['paper', 'sample', 'tiny'\]"),
        ("tiny", {"users": 5}, "users: Extra inputs are not permitted"),
        ("tiny", {"n_users": 0}, r"n_users: .*greater than or equal to 1 \(found 0\)"),
        ("tiny", {"days": "soon"}, r"days: .*valid integer.* \(found 'soon'\)"),
        ("tiny", {"languages": ("en", "xx")}, r"unknown: \['xx'\]"),
        ("tiny", {"languages": ()}, "languages"),
        ("tiny", {"audiobook_share": 0.9}, "is 1.120, expected at most 1"),
        ("tiny", {"n_tracks": 10}, "n_tracks is 10, fewer than n_artists 50"),
        ("tiny", {"layout": "csv"}, "layout: .*'hive' or 'flat'"),
        ("tiny", {"dirt": {"null_users": 2}}, "dirt.null_users: .*less than or equal to 1"),
        ("tiny", {"last_day": date(1999, 1, 1)}, "last_day is 1999-01-01"),
    ],
)
def test_wrong_settings_are_refused(name: str, overrides: dict[str, object], message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        preset(name, **overrides)
