"""Thinned audiobook pairs: which are kept, who sees it, and what stays whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from audiorec.catalogue import Extract, day_number, pair_chance
from audiorec.cuts import cuts
from audiorec.experiments.protocol import make_hold_out
from audiorec.settings import Scarcity

if TYPE_CHECKING:
    from conftest import Chain


def test_chances_are_uniform_and_independent_of_the_order():
    users = np.array([f"u{i}" for i in range(300) for _ in range(40)], object)
    titles = np.array([f"b{j}" for _ in range(300) for j in range(40)], object)
    chance = pair_chance(users, titles, seed=1)
    assert ((chance >= 0) & (chance < 1)).all()
    # 12,000 draws: a tenth's share has a standard error of 0.0027.
    shares = np.histogram(chance, bins=10, range=(0, 1))[0] / len(chance)
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.012)
    by_user, by_title = chance.reshape(300, 40).mean(axis=1), chance.reshape(300, 40).mean(axis=0)
    assert by_user.std() == pytest.approx(np.sqrt(1 / 12 / 40), rel=0.2)
    assert by_title.std() == pytest.approx(np.sqrt(1 / 12 / 300), rel=0.5)
    order = np.random.default_rng(1).permutation(len(users))
    assert (pair_chance(users[order], titles[order], 1) == chance[order]).all()
    assert abs(np.corrcoef(chance, pair_chance(users, titles, 2))[0, 1]) < 0.05


def thinned(chain: Chain, share: float, seed: int = 1) -> Extract:
    settings = chain.settings.model_copy(update={"scarcity": Scarcity(share=share, seed=seed)})
    return Extract(chain.inputs("extract"), settings, True)


def pairs(extract: Extract) -> set[tuple[int, int]]:
    return set(zip(extract.first_streams["user_idx"], extract.first_streams["audiobook_idx"], strict=True))


def test_smaller_shares_are_part_of_larger_ones_and_of_the_size_they_say(tiny_chain: Chain):
    whole = tiny_chain.extract()
    split = day_number(cuts(tiny_chain.as_of, tiny_chain.settings.time).split)
    before = whole.first_streams[whole.first_streams["day"] < split]
    after = len(whole.first_streams) - len(before)
    found = {share: pairs(thinned(tiny_chain, share)) for share in (0.5, 0.25, 0.05)}
    assert found[0.05] < found[0.25] < found[0.5] < pairs(whole)
    for share, kept in found.items():
        assert len(kept) - after == pytest.approx(share * len(before), abs=4 * np.sqrt(share * len(before)))
    assert pairs(thinned(tiny_chain, 0.25, seed=2)) != found[0.25]


def test_events_and_first_streams_drop_the_same_pairs_and_nothing_else(tiny_chain: Chain):
    whole, thin = tiny_chain.extract(), thinned(tiny_chain, 0.25)
    window = cuts(tiny_chain.as_of, tiny_chain.settings.time).judge
    everything = whole.events("audiobook", window.first_day, window.last_day)
    kept = thin.events("audiobook", window.first_day, window.last_day)
    gone = pairs(whole) - pairs(thin)
    expected = [pair not in gone for pair in zip(everything["user_idx"], everything["item_idx"], strict=True)]
    assert everything[expected].reset_index(drop=True).equals(kept)
    assert 0 < len(kept) < 0.6 * len(everything)
    for kind in ("podcast", "music"):
        assert thin.events(kind, window.first_day, window.last_day, kind == "music").equals(
            whole.events(kind, window.first_day, window.last_day, kind == "music")
        )


def test_who_is_judged_on_what_comes_from_the_whole_history(tiny_chain: Chain):
    settings = tiny_chain.settings
    all_cuts = cuts(tiny_chain.as_of, settings.time)
    one = make_hold_out(tiny_chain.extract(), all_cuts, settings.evaluation)
    other = make_hold_out(thinned(tiny_chain, 0.05), all_cuts, settings.evaluation)
    assert (one.users == other.users).all() and (one.segment == other.segment).all()
    assert (one.relevant != other.relevant).nnz == 0 and (one.streamed != other.streamed).nnz == 0
    assert (one.tier == other.tier).all()
    for panel in ("known", "full"):
        assert (one.candidates[panel] == other.candidates[panel]).all()
