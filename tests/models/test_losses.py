"""Losses by hand, and what each must do to a better score."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.functional import l2_normalize
from models.losses import inverse_propensity_loss, max_margin_loss, softmax_loss


def unit_rows(*shape, seed):
    return l2_normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )


# -- equation 4 ----------------------------------------------------------------------------------------

ANCHOR = torch.tensor([[1.0, 0.0]])
POSITIVE = torch.tensor([[3 / 5, 4 / 5]])
NEGATIVES = torch.tensor([[[4 / 5, 3 / 5], [0.0, 1.0], [-1.0, 0.0]]])


def test_max_margin_by_hand():
    # z_a.z_p = 3/5; negatives 4/5, 0, -1; margin 1/4:
    # max(0, 4/5 - 3/5 + 1/4) = 9/20, max(0, 0 - 3/5 + 1/4) = 0, 0: the mean is 9/60
    assert max_margin_loss(ANCHOR, POSITIVE, NEGATIVES, None, 0.25).item() == pytest.approx(9 / 60)
    # without the last negative: 9/40
    mask = torch.tensor([[True, True, False]])
    assert max_margin_loss(ANCHOR, POSITIVE, NEGATIVES, mask, 0.25).item() == pytest.approx(9 / 40)


def test_a_perfect_score_costs_nothing_and_a_reversed_one_the_most():
    anchor = torch.tensor([[1.0, 0.0]])
    good = max_margin_loss(anchor, anchor, -anchor.unsqueeze(1), None, 0.1)
    bad = max_margin_loss(anchor, -anchor, anchor.unsqueeze(1), None, 0.1)
    assert (good.item(), bad.item()) == (0, pytest.approx(2.1))


def test_a_batch_without_valid_negatives_costs_nothing_and_can_be_differentiated():
    anchor = ANCHOR.clone().requires_grad_()
    loss = max_margin_loss(anchor, POSITIVE, NEGATIVES, torch.zeros(1, 3, dtype=torch.bool), 0.25)
    loss.backward()
    assert loss.item() == 0 and anchor.grad.tolist() == [[0, 0]]


def test_no_negatives_at_all_is_an_error():
    with pytest.raises(ValueError, match="num_negatives is 0"):
        max_margin_loss(ANCHOR, POSITIVE, NEGATIVES[:, :0], None, 0.25)


# -- equation 5 ----------------------------------------------------------------------------------------


def three_users():
    """Scores o_u.o_j of three users and items, made by axis users: row u of `item.T`."""
    user = torch.eye(3)
    item = torch.tensor([[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [0.0, 0.6, 0.8]])
    # user 0 on items 0, 1, 2: 0.6, 0, 0    user 1: 0, 1, 0.6    user 2: 0.8, 0, 0.8
    return user, item


def test_equation_5_by_hand():
    user, item = three_users()
    propensity = torch.tensor([1 / 2, 1 / 4, 1 / 4])
    # weights of items as negatives 2, 4, 4:
    # user 0: (4*0 + 4*0)/8 - 3/5 = -3/5
    # user 1: (2*0 + 4*3/5)/6 - 1 = -3/5
    # user 2: (2*4/5 + 4*0)/6 - 4/5 = 4/15 - 4/5 = -8/15     mean: -26/45
    loss = inverse_propensity_loss(user, item, propensity)
    assert loss.item() == pytest.approx(-26 / 45)
    # the other reading, terms of users weighted 2, 4, 4 and plain means over negatives:
    # -3/5, 3/10 - 1 = -7/10, 2/5 - 4/5 = -2/5: (2*-3/5 + 4*-7/10 + 4*-2/5)/10 = -14/25
    assert inverse_propensity_loss(user, item, propensity, weighting="positives").item() == pytest.approx(
        -14 / 25
    )


def test_equation_5_leaves_excluded_items_out():
    user, item = three_users()
    exclude = torch.zeros(3, 3, dtype=torch.bool)
    exclude[2, 0] = True
    # user 2 is left with item 1 only: 0 - 4/5; others as above: (-3/5 - 3/5 - 4/5)/3 = -2/3
    loss = inverse_propensity_loss(user, item, torch.tensor([1 / 2, 1 / 4, 1 / 4]), exclude)
    assert loss.item() == pytest.approx(-2 / 3)
    # a user with no negative left has no term: (-3/5 - 3/5)/2
    exclude[2, 1] = True
    loss = inverse_propensity_loss(user, item, torch.tensor([1 / 2, 1 / 4, 1 / 4]), exclude)
    assert loss.item() == pytest.approx(-3 / 5)


@given(st.integers(2, 8), st.integers(0, 2**31), st.sampled_from(["negatives", "positives"]))
def test_equation_5_is_bounded_on_unit_vectors(size, seed, weighting):
    propensity = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    loss = inverse_propensity_loss(
        unit_rows(size, 3, seed=seed), unit_rows(size, 3, seed=seed + 1), propensity, weighting=weighting
    )
    assert -2 - 1e-9 <= loss.item() <= 2 + 1e-9


def test_inverse_propensity_makes_a_popular_negative_count_like_a_rare_one():
    """Batches drawn by popularity: the weighted mean over negatives estimates the mean over the catalogue."""
    # A catalogue of two negatives, scored 1 and 0; the first is drawn nine times of ten.
    drawn = torch.tensor([0] * 900 + [1] * 100)
    item = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[drawn]
    user = torch.tensor([[1.0, 0.0]]).expand(1_000, 2)
    propensity = torch.tensor([0.9, 0.1])[drawn]
    positive = (user * item).sum(1).mean()
    weighted = inverse_propensity_loss(user, item, propensity) + positive
    plain = inverse_propensity_loss(user, item, propensity, weighting="positives")
    assert weighted.item() == pytest.approx(1 / 2, abs=0.01)
    assert plain.item() != pytest.approx(weighted.item(), abs=0.01)


# -- softmax -------------------------------------------------------------------------------------------


def test_softmax_by_hand():
    scores = torch.tensor([[math.log(2), math.log(1), math.log(5)]])
    target = torch.tensor([0])
    assert softmax_loss(scores, target).item() == pytest.approx(-math.log(2 / 8))
    # the last candidate excluded: 2/3
    exclude = torch.tensor([[False, False, True]])
    assert softmax_loss(scores, target, exclude=exclude).item() == pytest.approx(-math.log(2 / 3))
    # drawn with q = (1/2, 1/4, 1/4): 2*2 / (2*2 + 1*4 + 5*4) = 4/28
    log_q = torch.tensor([1 / 2, 1 / 4, 1 / 4]).log()
    assert softmax_loss(scores, target, log_q).item() == pytest.approx(-math.log(4 / 28))


def test_the_target_competes_even_if_it_is_excluded():
    scores = torch.tensor([[0.0, 0.0]])
    exclude = torch.tensor([[True, False]])
    assert softmax_loss(scores, torch.tensor([0]), exclude=exclude).item() == pytest.approx(math.log(2))
    assert exclude.tolist() == [[True, False]], "the caller's mask was changed"


def test_weights_make_a_weighted_mean():
    # rows cost log 2 and log 4; weights 1 and 3: (log 2 + 3 * 2 log 2)/4 = 7/4 log 2
    scores = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf], [0.0, 0.0, 0.0, 0.0]])
    loss = softmax_loss(scores, torch.tensor([0, 0]), weights=torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx(7 / 4 * math.log(2))
    assert softmax_loss(scores, torch.tensor([0, 0]), weights=torch.zeros(2)).item() == 0


@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_softmax_equals_torch_s_cross_entropy(candidates, rows, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, candidates, generator=generator)
    target = torch.randint(candidates, (rows,), generator=generator)
    torch.testing.assert_close(
        softmax_loss(scores, target), torch.nn.functional.cross_entropy(scores, target)
    )


def test_the_correction_recovers_the_full_softmax():
    """Candidates repeated as often as popularity draws them, with log q, weigh like each of them once."""
    full = torch.tensor([[1.0, 0.0, -1.0]])
    repeats = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    sampled = full[:, repeats]
    corrected = sampled - torch.tensor([4.0, 2.0, 1.0]).log()[repeats]
    plain = torch.logsumexp(full, 1) - full[0, 2]
    assert (torch.logsumexp(corrected, 1) - full[0, 2]).item() == pytest.approx(plain.item())
    loss = softmax_loss(sampled, torch.tensor([6]), torch.tensor([4.0, 2.0, 1.0]).log()[repeats])
    assert loss.item() == pytest.approx(plain.item())
