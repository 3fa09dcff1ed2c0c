"""The towers: untrained they are popularity, trained they are not, and every weight learns."""

import pytest
import torch

from models.losses import inverse_propensity_loss, softmax_loss
from models.sampler import seeded_generator
from models.two_tower import TwoTower, TwoTowerConfig

USERS, ITEMS = 12, 9


def config(**changes):
    return TwoTowerConfig(
        **{
            "num_countries": 3,
            "num_languages": 2,
            "num_genres": 4,
            "user_features": 5,
            "item_features": 6,
            "popularity_features": 2,
            "hidden": (32, 16, 8),
            **changes,
        }
    )


@pytest.fixture
def data():
    generator = seeded_generator(1)
    return {
        "users": (torch.arange(USERS) % 3, torch.randn(USERS, 5, generator=generator)),
        "items": (
            torch.arange(ITEMS) % 2,
            torch.arange(ITEMS) % 4,
            torch.randn(ITEMS, 6, generator=generator),
        ),
        "popularity": (
            torch.log(torch.arange(1.0, ITEMS + 1)),
            torch.randn(ITEMS, 2, generator=generator),
        ),
        "target": torch.randint(ITEMS, (USERS,), generator=generator),
    }


def scores_of(model, data):
    return model.user_vectors(*data["users"]) @ model.item_vectors(*data["items"], *data["popularity"]).T


def test_the_untrained_model_is_the_popularity_prior_exactly(data):
    for layer_norm in (False, True):
        scores = scores_of(TwoTower(config(layer_norm=layer_norm)), data)
        assert torch.equal(scores, data["popularity"][0].expand(USERS, ITEMS))


def test_vectors_have_the_paper_s_size_and_one_coordinate_more(data):
    model = TwoTower(config(hidden=(512, 256, 128))).eval()
    users, items = model.user_vectors(*data["users"]), model.item_vectors(*data["items"], *data["popularity"])
    assert model.dim == 129 and users.shape == (USERS, 129) and items.shape == (ITEMS, 129)
    assert bool((users[:, -1] == 1).all())
    torch.testing.assert_close(users[:, :-1].norm(dim=1), torch.ones(USERS))
    widths = [m.out_features for m in model.user_tower if isinstance(m, torch.nn.Linear)]
    assert widths == [512, 256, 128]


@pytest.mark.parametrize("changes", [{}, {"layer_norm": True}, {"popularity_prior": False}])
def test_after_one_step_every_weight_gets_a_gradient(data, changes):
    model = TwoTower(config(**changes))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(2):  # at the first step the scale of 0 keeps the towers from learning, and itself learns
        optimizer.zero_grad()
        softmax_loss(scores_of(model, data), data["target"]).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


@pytest.mark.parametrize("loss", ["softmax", "equation 5"])
def test_training_finds_what_each_user_likes_against_popularity(data, loss):
    changes = {} if loss == "softmax" else {"popularity_prior": False, "learn_scale": False}
    model = TwoTower(config(**changes))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    target = data["target"]
    for _ in range(150):
        optimizer.zero_grad()
        if loss == "softmax":
            value = softmax_loss(scores_of(model, data), target)
        else:
            users = model.user_vectors(*data["users"])[:, :-1]
            items = model.item_vectors(*data["items"])[target, :-1]
            same = target.unsqueeze(0) == target.unsqueeze(1)
            value = inverse_propensity_loss(users, items, torch.full((USERS,), 1 / ITEMS), same)
        value.backward()
        optimizer.step()
    if loss == "softmax":
        assert float((scores_of(model, data).argmax(1) == target).float().mean()) >= 0.9
    else:
        scores = model.user_vectors(*data["users"]) @ model.item_vectors(*data["items"]).T
        seen = torch.unique(target)
        chosen = seen[scores[:, seen].argmax(1)]
        assert float((chosen == target).float().mean()) >= 0.9


def test_the_bias_learns_from_popularity_features(data):
    model = TwoTower(config())
    assert model.popularity is not None
    with torch.no_grad():
        model.popularity.weight.copy_(torch.tensor([[2.0, -1.0]]))
        model.prior_weight.fill_(0.5)
    log_popularity, features = data["popularity"]
    expected = 0.5 * log_popularity + 2 * features[:, 0] - features[:, 1]
    torch.testing.assert_close(model.item_vectors(*data["items"], *data["popularity"])[:, -1], expected)


def test_the_paper_s_recipe_has_no_bias_and_cosine_scores(data):
    model = TwoTower(config(popularity_prior=False))
    items = model.item_vectors(*data["items"])
    assert bool((items[:, -1] == 0).all())
    torch.testing.assert_close(items.norm(dim=1), torch.ones(ITEMS))
    assert not any("popularity" in name or "prior" in name for name, _ in model.named_parameters())


def test_the_same_seed_gives_the_same_model():
    one, same, other = (TwoTower(config(seed=seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["user_tower.0.weight"], other["user_tower.0.weight"])


def test_dropout_is_silent_outside_training(data):
    model = TwoTower(config(dropout=0.5)).eval()
    assert torch.equal(model.user_vectors(*data["users"]), model.user_vectors(*data["users"]))
    model.train()
    assert not torch.equal(model.user_vectors(*data["users"]), model.user_vectors(*data["users"]))


def population(number=400):
    generator = seeded_generator(5)
    return torch.arange(number) % 3, torch.randn(number, 5, generator=generator)


def test_the_mean_user_comes_off(data):
    """Over many passes of the same users their mean output is taken off, and what the towers add favours no title."""
    users = population()
    model = TwoTower(config())
    before = model.eval().user_vectors(*users)[:, :-1]
    assert float(before.mean(0).norm().detach()) > 0.1
    model.train()
    for _ in range(200):
        model.user_vectors(*users)
    before, after = before.detach(), model.eval().user_vectors(*users)[:, :-1].detach()
    assert float(after.mean(0).norm()) < 1e-4 * float(before.mean(0).norm()) + 1e-5
    torch.testing.assert_close(after, before - before.mean(0), atol=1e-4, rtol=0)
    with torch.no_grad():
        model.scale.fill_(1.0)
        items = model.item_vectors(*data["items"], *data["popularity"])[:, :-1]
    assert float(items.norm()) > 1
    torch.testing.assert_close((after @ items.T).mean(0), torch.zeros(ITEMS), atol=1e-3, rtol=0)


def test_one_pass_moves_the_mean_by_a_twentieth_and_evaluation_not_at_all(data):
    users = population()
    model = TwoTower(config())
    output = model.eval().user_vectors(*users)[:, :-1]
    assert not model.mean_user.any(), "evaluation leaves it"
    model.train()
    model.user_vectors(*users)
    torch.testing.assert_close(model.mean_user, 0.05 * output.detach().mean(0))
    model.user_vectors(users[0][:0], users[1][:0])
    torch.testing.assert_close(model.mean_user, 0.05 * output.detach().mean(0))  # nobody moves nothing
    assert not model.mean_user.requires_grad and "mean_user" not in dict(model.named_parameters())


def test_the_mean_user_is_kept_with_the_weights_and_forgotten_with_them():
    users = population()
    model = TwoTower(config())
    for _ in range(3):
        model.user_vectors(*users)
    model.eval()
    other = TwoTower(config(seed=2)).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.mean_user, model.mean_user) and bool(model.mean_user.any())
    assert torch.equal(other.user_vectors(*users), model.user_vectors(*users))
    model.reset_parameters(seeded_generator(1))
    assert not model.mean_user.any()


def test_without_centring_users_have_unit_length_in_training_too(data):
    model = TwoTower(config(centre_users=False))
    for _ in range(3):
        users = model.user_vectors(*data["users"])
    torch.testing.assert_close(users[:, :-1].norm(dim=1), torch.ones(USERS))
    assert not model.mean_user.any()


def test_missing_inputs_and_contradictions_are_named(data):
    model = TwoTower(config())
    with pytest.raises(ValueError, match="log_popularity is missing"):
        model.item_vectors(*data["items"])
    with pytest.raises(ValueError, match="popularity_features is missing"):
        model.item_vectors(*data["items"], data["popularity"][0])
    with pytest.raises(ValueError, match="scale would stay 0"):
        TwoTower(config(learn_scale=False))
