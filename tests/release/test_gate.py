"""The gate's rules (design 7), one by one, and what no combination of them may do."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiorec.gate import Candidate, Champion, Verdict, decide
from audiorec.settings import Release
from models.metrics import Interval

TODAY = date(2026, 11, 23)
YESTERDAY = TODAY - timedelta(days=1)


def paired(low: float, high: float, users: int = 200) -> Interval:
    return Interval((low + high) / 2, low, high, users, 0.95)


EQUAL = paired(-0.02, 0.02)
WORSE = paired(-0.05, -0.01)
BETTER = paired(0.01, 0.05)


def judged(
    champion: Champion | None = None,
    history: tuple[float, ...] = (),
    *,
    hit_rate: float = 0.4,
    insane: tuple[str, ...] = (),
    release: Release | None = None,
    **named: Any,
) -> Verdict:
    given_ = {"policy": "fresh", "run_type": "scheduled", **named}
    return decide(Candidate(TODAY, hit_rate, 200, insane), champion, history, release or Release(), **given_)


def serving(difference: Interval | None = EQUAL, as_of: date = YESTERDAY) -> Champion:
    return Champion("7", as_of, difference)


@pytest.mark.parametrize(
    ("rule", "found", "word", "said"),
    [
        ("an A/A candidate", judged(serving()), "promoted", "+0.0000 [-0.0200, +0.0200] against version 7"),
        ("better", judged(serving(BETTER)), "promoted", "+0.0300 [+0.0100, +0.0500]"),
        ("worse", judged(serving(WORSE)), "refused", "-0.0300 [-0.0500, -0.0100] against version 7"),
        ("users are named", judged(serving(paired(-0.1, -0.05, 321))), "refused", "on 321 users"),
        ("the champion's date is named", judged(serving()), "promoted", "(2026-11-22)"),
        ("no interval below 0 but one that touches it", judged(serving(paired(-0.1, 0.0))), "promoted", ""),
        # Floors: 0.9 x 1/2 = 0.45; 0.9 x (1/4 + 1/2)/2 = 0.3375.
        ("at the floor", judged(serving(), (0.5,), hit_rate=0.45), "promoted", "1 promoted version(s), 0.4500"),
        ("under it", judged(serving(), (0.5,), hit_rate=0.4499), "refused", "HR@10 0.4499 against 0.9 x"),
        ("the median of two", judged(serving(), (0.25, 0.5), hit_rate=0.33), "refused", "0.3375"),
        ("better, but under it", judged(serving(BETTER), (0.5,)), "refused", "0.4500"),
        ("worse, but above it", judged(serving(WORSE), (0.4,)), "refused", "against version 7"),
        ("no champion", judged(None), "promoted", "no champion yet: sanity checks alone"),
        ("no champion: no history either", judged(None, (0.9,)), "promoted", "no champion yet"),
        ("no champion, insane", judged(None, insane=("all vectors are equal",)), "refused", "are equal"),
        ("no figures of the champion", judged(serving(None)), "promoted", "version 7 (2026-11-22) could not be"),
        ("... history judges", judged(serving(None), (0.5,)), "refused", "0.4500"),
        ("the same date", judged(serving(None, TODAY)), "registered", "version 7, 2026-11-23"),
        ("a later date", judged(serving(None, TODAY + timedelta(1))), "registered", "not of an earlier date"),
        ("never", judged(serving(BETTER), policy="never"), "registered", "promote is `never`"),
        ("never, without champion", judged(None, policy="never"), "registered", "`never`"),
        ("if_better: equal", judged(serving(), policy="if_better"), "refused", "not better"),
        ("if_better: worse", judged(serving(WORSE), policy="if_better"), "refused", "against version 7"),
        ("if_better: touches 0", judged(serving(paired(0.0, 0.1)), policy="if_better"), "refused", "not better"),
        ("if_better: better", judged(serving(BETTER), policy="if_better"), "promoted", "+0.0300"),
        ("if_better: no figures", judged(serving(None), policy="if_better"), "refused", "asks for a comparison"),
        ("if_better: no champion", judged(None, policy="if_better"), "promoted", "no champion yet"),
        ("force over worse", judged(serving(WORSE), policy="force"), "promoted", "forced"),
        ("force over history", judged(serving(), (0.9,), policy="force"), "promoted", "forced"),
        ("force under a hold", judged(serving(), policy="force", hold="Ann: recall"), "registered", "Ann: recall; `promote = override_hold`"),
        ("override_hold", judged(serving(), policy="override_hold", hold="Ann: recall"), "promoted", "forced, over the hold of Ann: recall"),
        ("override_hold, no hold", judged(serving(WORSE), policy="override_hold"), "promoted", "forced"),
        ("override_hold, same date", judged(serving(None, TODAY), policy="override_hold"), "registered", "use a rollback"),
        ("sanity over override_hold", judged(serving(), policy="override_hold", insane=("NaN",)), "refused", "NaN"),
        ("force, same date", judged(serving(None, TODAY), policy="force"), "registered", "use a rollback"),
        ("sanity over force", judged(serving(BETTER), policy="force", insane=("NaN",)), "refused", "NaN"),
        ("sanity over never", judged(None, policy="never", insane=("NaN",)), "refused", "sanity check failed: NaN"),
        ("hold", judged(serving(BETTER), hold="Ann: recall, until Friday"), "registered", "Ann: recall, until Friday"),
        ("hold, no champion", judged(None, hold="Ann: recall"), "registered", "the alias is held"),
        ("backfill", judged(serving(BETTER), run_type="backfill"), "registered", "promote = force"),
        ("backfill, no champion", judged(None, run_type="backfill"), "registered", "a backfill registers"),
        ("backfill, if_better", judged(serving(BETTER), run_type="backfill", policy="if_better"), "registered", ""),
        ("backfill, asked", judged(serving(), run_type="backfill", policy="force"), "promoted", "forced"),
        (
            "backfill, asked, but back in time",
            judged(serving(None, TODAY), run_type="backfill", policy="force"),
            "registered",
            "not of an earlier date",
        ),
        ("manual", judged(serving(), run_type="manual"), "promoted", ""),
    ],
)  # fmt: skip
def test_rule(rule: str, found: Verdict, word: str, said: str):
    assert (found.word, found.promoted) == (word, word == "promoted")
    assert found.line().startswith(f"{word}: ")
    assert said in found.line()


def test_only_the_newest_fourteen_count():
    """Newest first: fourteen of 0.4 ask for 0.36; a hundred older ones of 0.9 would ask for 0.81."""
    history = (0.4,) * 14 + (0.9,) * 100
    assert judged(serving(), history, hit_rate=0.37).promoted
    assert "the median of 14 promoted version(s), 0.3600" in judged(serving(), history, hit_rate=0.37).line()
    assert not judged(serving(), history, hit_rate=0.37, release=Release(history=115)).promoted
    assert not judged(serving(), history, hit_rate=0.37, release=Release(min_ratio=0.95)).promoted


def test_every_reason_against_is_given():
    found = judged(serving(WORSE), (0.5,), hit_rate=0.1)
    assert len(found.reasons) == 2
    two = judged(None, insane=("vectors are not finite", "coverage 0.0100 is under 0.2"))
    assert [reason.removeprefix("sanity check failed: ") for reason in two.reasons] == [
        "vectors are not finite",
        "coverage 0.0100 is under 0.2",
    ]


def test_reasons_name_the_metric_that_was_judged():
    candidate = Candidate(TODAY, 0.3, 200, metric="HR@5")
    found = decide(candidate, serving(), (0.3,), Release(), policy="fresh", run_type="manual")
    assert all(reason.startswith("HR@5 ") for reason in found.reasons)


INTERVALS = st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(lambda ends: paired(min(ends), max(ends)))
RUNS = st.fixed_dictionaries(
    {
        "day": st.integers(0, 6),
        "hit_rate": st.floats(0, 1),
        "insane": st.sampled_from([(), ("NaN",)]),
        "difference": st.none() | INTERVALS,
        "history": st.lists(st.floats(0, 1), max_size=20),
        "policy": st.sampled_from(["fresh", "never", "if_better", "force", "override_hold"]),
        "run_type": st.sampled_from(["manual", "scheduled", "backfill"]),
        "hold": st.none() | st.just("Ann: recall"),
    }
)


@settings(max_examples=300, deadline=None)
@given(st.lists(RUNS, max_size=12))
def test_the_champion_only_moves_forward_in_data_time(runs: list[dict[str, Any]]):
    """Whatever runs come in whatever order; and nothing unfit, held, unasked or forbidden gets the alias."""
    at: date | None = None
    for number, run in enumerate(runs):
        as_of = TODAY + timedelta(days=run["day"])
        champion = None if at is None else Champion(str(number), at, run["difference"])
        found = decide(
            Candidate(as_of, run["hit_rate"], 200, run["insane"]),
            champion,
            run["history"],
            Release(),
            policy=run["policy"],
            run_type=run["run_type"],
            hold=run["hold"],
        )
        assert found.reasons
        if found.promoted:
            assert at is None or as_of > at
            assert not run["insane"]
            assert run["policy"] != "never"
            assert run["hold"] is None or run["policy"] == "override_hold"
            assert run["run_type"] != "backfill" or run["policy"] in ("force", "override_hold")
            at = as_of
