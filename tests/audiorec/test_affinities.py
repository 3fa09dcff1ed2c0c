"""Affinities: spaces, users' and titles' places in them, and the weighted sum of cosines as one inner product."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from audiorec.affinities import Affinities, Channel, Space, UserLayout, fit_space, join_spaces, unit_rows
from audiorec.features import FeatureConfig, FeatureSpec

NOTHING = np.zeros((0, 2), np.float32)


def rows(*values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32)


# --- spaces ---------------------------------------------------------------------------------------------


def test_a_space_is_centred_by_type():
    """Audiobooks have the mean (2, 1), podcasts (10, -1)."""
    space = fit_space(rows((1, 0), (3, 0), (2, 3)), rows((10, 0), (10, -2)), None)
    assert space.centre["audiobook"].tolist() == [2, 1]
    assert space.centre["podcast"].tolist() == [10, -1]
    assert space.axes is None
    assert space.place("audiobook", rows((2, 1), (5, 5))).tolist() == [[0, 0], [3, 4]]
    assert space.place("podcast", rows((2, 1), (5, 5))).tolist() == [[-8, 2], [-5, 6]]


@pytest.mark.parametrize(
    ("direction", "axis"),
    [((3, 4), (0.6, 0.8)), ((-3, -4), (0.6, 0.8)), ((3, -4), (-0.6, 0.8)), ((4, -3), (0.8, -0.6))],
)
def test_the_first_axis_points_where_its_largest_entry_is_positive(
    direction: tuple[float, float], axis: tuple[float, float]
):
    """Titles far along one direction and near along the other; the centre is 0."""
    x, y = direction
    titles = rows((x, y), (-x, -y), (-y / 10, x / 10), (y / 10, -x / 10))
    space = fit_space(titles, NOTHING, 1)
    assert space.axes[:, 0] == pytest.approx(np.array(axis), abs=1e-6)
    assert space.place("audiobook", titles)[:, 0] == pytest.approx(
        np.array([5, -5, 0, 0]) * np.sign(x * axis[0]), abs=1e-5
    )
    # Podcasts lie on the audiobooks' axes, less their own centre, which is 0 where there are none.
    assert space.place("podcast", rows(axis))[:, 0] == pytest.approx([1], abs=1e-6)


def test_axes_are_in_the_order_of_what_they_explain():
    titles = rows((1, 0, 0), (-1, 0, 0), (0, 0, 5), (0, 0, -5), (0, 3, 0), (0, -3, 0))
    space = fit_space(titles, np.zeros((0, 3), np.float32), 2)
    assert np.abs(space.axes - rows((0, 0), (0, 1), (1, 0))).max() < 1e-6


def test_all_dimensions_are_kept_where_no_fewer_are_wanted():
    titles = np.random.default_rng(1).normal(size=(9, 4)).astype(np.float32)
    for dimensions in (None, 4, 5):
        assert fit_space(titles, titles, dimensions).axes is None
    assert fit_space(titles, titles, 3).axes.shape == (4, 3)


@pytest.mark.parametrize("dimensions", [None, 1])
def test_a_title_without_a_vector_is_nowhere_and_moves_nothing(dimensions: int | None):
    """A row of zeros is a missing text; taken at its word it would lie at minus the centre, near to its like."""
    titles, podcasts = rows((1, 2), (3, 8), (5, 5)), rows((4, 4), (4, 6))
    blank = rows((0, 0))
    space = fit_space(titles, podcasts, dimensions)
    with_blanks = fit_space(
        np.concatenate([blank, titles, blank]), np.concatenate([podcasts, blank]), dimensions
    )
    assert with_blanks.centre["audiobook"].tolist() == [3, 5]
    assert with_blanks.centre["podcast"].tolist() == [4, 5]
    for kind in ("audiobook", "podcast"):
        placed = with_blanks.place(kind, np.concatenate([blank, titles]))
        assert not placed[0].any() and not unit_rows(placed)[0].any()
        assert placed[1:].tolist() == space.place(kind, titles).tolist()
    # A title in the very middle is known, and as near to nothing.
    assert not space.place("audiobook", rows((3, 5))).any()


def test_a_catalogue_without_any_vector_has_a_space():
    blank = np.zeros((3, 2), np.float32)
    for audiobooks, podcasts in ((blank, blank), (blank, NOTHING), (NOTHING, NOTHING)):
        for dimensions in (None, 1):
            space = fit_space(audiobooks, podcasts, dimensions)
            assert not space.centre["audiobook"].any() and not space.centre["podcast"].any()
            assert not space.place("audiobook", blank).any()


def catalogue(seed: int, number: int, width: int = 6) -> np.ndarray:
    """Titles whose axes are told apart by how far they reach: each half as far as the one before."""
    generator = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(generator.normal(size=(width, width)))
    spread = generator.normal(size=(number, width)) * 2.0 ** -np.arange(width)
    return (spread @ turned + generator.normal(size=width)).astype(np.float32)


@hypothesis_settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(40, 80), st.sampled_from([None, 1, 2, 3]))
def test_the_order_of_rows_changes_nothing_and_the_same_rows_give_the_same_bytes(
    seed: int, number: int, dimensions: int | None
):
    audiobooks, podcasts = catalogue(seed, number), catalogue(seed + 1, number // 2)
    space = fit_space(audiobooks, podcasts, dimensions)
    again = fit_space(audiobooks.copy(), podcasts.copy(), dimensions)
    shuffle = np.random.default_rng(seed).permutation
    other = fit_space(shuffle(audiobooks), shuffle(podcasts), dimensions)
    for kind in ("audiobook", "podcast"):
        assert again.centre[kind].tobytes() == space.centre[kind].tobytes()
        assert other.centre[kind] == pytest.approx(space.centre[kind], abs=1e-5)
    if dimensions is None:
        assert space.axes is None and other.axes is None
    else:
        assert again.axes.tobytes() == space.axes.tobytes()
        largest = np.abs(space.axes).argmax(axis=0)
        assert (space.axes[largest, np.arange(dimensions)] > 0).all()
        # An axis whose two largest entries are as long may turn round; where they are not, it does not.
        entries = np.sort(np.abs(space.axes), axis=0)
        clear = entries[-1] - entries[-2] > 1e-3
        assert np.abs(other.axes - space.axes)[:, clear].max(initial=0) < 1e-3
    kind_of = audiobooks[:7], podcasts[:7]
    for kind, vectors in zip(("audiobook", "podcast"), kind_of, strict=True):
        assert np.abs(other.place(kind, vectors)) == pytest.approx(
            np.abs(space.place(kind, vectors)), abs=1e-2
        )


# --- unit length ----------------------------------------------------------------------------------------


def test_rows_of_unit_length_and_rows_of_zeros():
    found = unit_rows(rows((3, 4), (0, 0), (-2, 0), (1e-7, -1e-7)))
    assert found == pytest.approx(rows((0.6, 0.8), (0, 0), (-1, 0), (0, 0)))
    assert found.dtype == np.float32
    assert unit_rows(NOTHING).shape == (0, 2)


# --- where things stand ---------------------------------------------------------------------------------


def test_columns_of_the_user_features_by_hand():
    """Age 2, music 2 and its flag; then four histories of 3 + 1 means and a count each."""
    layout = UserLayout(2, {"hgnn": 3, "text": 1}, weak_signals=True)
    assert layout.histories == ("audiobook", "audiobook_weak", "podcast", "podcast_weak")
    assert layout.width == 25
    assert layout.music_flag == 4
    assert layout.channels() == [
        Channel("music", "music", slice(2, 4), 4),
        Channel("hgnn.audiobook", "hgnn", slice(5, 8), 9),
        Channel("text.audiobook", "text", slice(8, 9), 9),
        Channel("hgnn.audiobook_weak", "hgnn", slice(10, 13), 14),
        Channel("text.audiobook_weak", "text", slice(13, 14), 14),
        Channel("hgnn.podcast", "hgnn", slice(15, 18), 19),
        Channel("text.podcast", "text", slice(18, 19), 19),
        Channel("hgnn.podcast_weak", "hgnn", slice(20, 23), 24),
        Channel("text.podcast_weak", "text", slice(23, 24), 24),
    ]


def test_columns_without_weak_signals_and_without_hgnn():
    layout = UserLayout(1, {"text": 2}, weak_signals=False)
    assert layout.histories == ("audiobook", "podcast")
    assert layout.width == 4 + 2 * 3
    assert [channel.name for channel in layout.channels()] == ["music", "text.audiobook", "text.podcast"]
    assert [channel.filled for channel in layout.channels()] == [3, 6, 9]


# --- users' places --------------------------------------------------------------------------------------

SMALL = UserLayout(2, {"text": 2}, weak_signals=False)
"""Age 0..1, music 2..3 and flag 4, audiobooks 5..6 and count 7, podcasts 8..9 and count 10."""


def user(
    music: tuple[float, float] | None = None,
    audiobooks: tuple[float, float] | None = None,
    podcasts: tuple[float, float] | None = None,
) -> list[float]:
    """A row of raw features of somebody aged 40: means of one title each."""
    row = [0.0, 0.0, *((*music, 1.0) if music else (0.0, 0.0, 0.0))]
    for mean in (audiobooks, podcasts):
        row += [*mean, np.log(2)] if mean else [0.0, 0.0, 0.0]
    return row


def test_places_of_users_by_hand():
    dense = rows(user((0, 2), (3, 4), (-1, 0)), user(podcasts=(0, 0.001)), user())
    affinities = Affinities(SMALL, countries=(2, 5), weights={})
    placed = affinities.placed(dense, np.array([5, 2, 0]))
    assert {name: space for name, (space, _) in placed.items()} == {
        "music": "music",
        "text.audiobook": "text",
        "text.podcast": "text",
        "country": "country",
    }
    expected = {
        "music": rows((0, 1), (0, 0), (0, 0)),
        "text.audiobook": rows((0.6, 0.8), (0, 0), (0, 0)),
        "text.podcast": rows((-1, 0), (0, 1), (0, 0)),
        "country": rows((0, 1), (1, 0), (0, 0)),
    }
    for name, places in expected.items():
        assert placed[name][1] == pytest.approx(places), name
        assert placed[name][1].dtype == np.float32


def test_countries_without_a_column_and_unknown_ones_are_nowhere():
    affinities = Affinities(SMALL, countries=(2, 5), weights={"country": 1.0})
    _, places = affinities.placed(rows(*[user()] * 4), np.array([0, 1, 2, 5]))["country"]
    assert places.tolist() == [[0, 0], [0, 0], [1, 0], [0, 1]]
    nobody = Affinities(SMALL, countries=(), weights={"country": 1.0})
    assert nobody.placed(rows(user()), np.array([1]))["country"][1].shape == (1, 0)
    assert nobody.users(rows(user()), np.array([1])).shape == (1, 4)


def test_the_users_side_by_hand():
    """text: 2 * (0.6, 0.8) - 1 * (1, 0); music: 0.5 * (0, 1); country: 3 * (0, 1). A channel without a weight is 0."""
    weights = {"text.audiobook": 2.0, "text.podcast": -1.0, "music": 0.5, "country": 3.0}
    dense, country = rows(user((0, 2), (3, 4), (7, 0))), np.array([5])
    affinities = Affinities(SMALL, (2, 5), weights)
    assert affinities.spaces == ("text", "music", "country")
    assert affinities.users(dense, country) == pytest.approx(rows((0.2, 1.6, 0, 0.5, 0, 3)))
    del weights["text.audiobook"], weights["country"]
    assert affinities.users(dense, country) == pytest.approx(rows((-1, 0, 0, 0.5, 0, 0)))


def test_the_titles_side_is_in_the_order_of_the_users_side():
    spaces = {"country": rows((5, 6)), "text": rows((1, 2)), "music": rows((3, 4))}
    joined = join_spaces(spaces, Affinities(SMALL, (2, 5), {}).spaces)
    assert joined.tolist() == [[1, 2, 3, 4, 5, 6]]
    assert joined.dtype == np.float32


def spec_of(mean: np.ndarray, scale: np.ndarray) -> FeatureSpec:
    """Scalers of the small layout; the rest does not matter."""
    space = Space({"audiobook": np.zeros(2, np.float32), "podcast": np.zeros(2, np.float32)}, None)
    return FeatureSpec(
        FeatureConfig(music_dimensions=2, weak_signals=False, use_hgnn=False),
        ("a", "b"),
        (1, 2),
        (),
        (),
        {"text": space},
        mean.astype(np.float32),
        scale.astype(np.float32),
        np.zeros(1, np.float32),
        np.ones(1, np.float32),
    )


numbers = st.floats(-1, 1, width=32)


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    st.lists(numbers, min_size=11, max_size=11),
    st.lists(st.floats(-2, 6, width=32), min_size=11, max_size=11),
    st.lists(st.sampled_from(["music", "audiobook", "podcast", "middle"]), max_size=4),
)
def test_an_empty_history_is_near_to_nothing_even_scaled_and_unscaled(
    means: list[float], log_scales: list[float], filled: list[str]
):
    """What rounding leaves of a zero must not become a direction; 'middle' is a history whose mean is 0."""
    spec = spec_of(np.array(means), 10.0 ** np.array(log_scales))
    assert spec.layout == SMALL
    row = user(
        (0.6, 0.8) if "music" in filled else None,
        (0.3, -0.4) if "audiobook" in filled else (0, 0) if "middle" in filled else None,
        (0.05, 0) if "podcast" in filled else None,
    )
    back = spec.raw_users(spec.scale_users(rows(row)))
    placed = Affinities(SMALL, spec.lift_countries, {}).placed(back, np.array([0]))
    expected = {
        "music": (0.6, 0.8) if "music" in filled else (0, 0),
        "text.audiobook": (0.6, -0.8) if "audiobook" in filled else (0, 0),
        "text.podcast": (1, 0) if "podcast" in filled else (0, 0),
    }
    for name, place in expected.items():
        found = placed[name][1][0]
        assert found == pytest.approx(np.array(place), abs=1e-4), name
        if place == (0, 0):
            assert not found.any(), name
    everything = dict.fromkeys((*expected, "country"), 7.0)
    summed = Affinities(SMALL, spec.lift_countries, everything).users(back, np.array([0]))
    assert summed.any() == any(place != (0, 0) for place in expected.values())


def test_rounding_leaves_something_of_a_zero_and_it_is_no_direction():
    """1,000 scalers; a history of titles whose mean is 0, such as one of titles without a text."""
    generator = np.random.default_rng(1)
    noisy = 0
    for _ in range(1_000):
        spec = spec_of(generator.normal(size=11), np.exp(generator.normal(size=11)))
        back = spec.raw_users(spec.scale_users(rows(user(audiobooks=(0, 0)))))
        noisy += back[0, 5:7].any()
        _, places = Affinities(SMALL, (1, 2), {}).placed(back, np.array([0]))["text.audiobook"]
        assert not places.any()
    assert noisy > 100


@hypothesis_settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_one_inner_product_is_the_weighted_sum_of_the_cosines(seed: int):
    generator = np.random.default_rng(seed)
    layout = UserLayout(3, {"hgnn": 4, "text": 2}, weak_signals=bool(generator.integers(2)))
    countries = (1, 3, 4)
    dense = generator.normal(size=(5, layout.width)).astype(np.float32)
    for channel in layout.channels():
        empty = generator.random(5) < 0.3
        dense[:, channel.filled] = np.where(empty, 0, 1)
    country = generator.integers(0, 6, 5)
    names = [channel.name for channel in layout.channels()]
    weights = dict(zip([*names, "country"], generator.normal(size=len(names) + 1), strict=True))
    spaces = {
        name: unit_rows(generator.normal(size=(7, width)))
        for name, width in (("hgnn", 4), ("text", 2), ("music", 3))
    }
    spaces["country"] = generator.normal(size=(7, 3)).astype(np.float32)
    affinities = Affinities(layout, countries, weights)
    scores = affinities.users(dense, country) @ join_spaces(spaces, affinities.spaces).T

    for row in range(5):
        for title in range(7):
            expected = 0.0
            for channel in layout.channels():
                own, other = dense[row, channel.columns], spaces[channel.space][title]
                if dense[row, channel.filled]:
                    expected += weights[channel.name] * float(own @ other) / float(np.linalg.norm(own))
            if country[row] in countries:
                lift = spaces["country"][title, countries.index(country[row])]
                expected += weights["country"] * float(lift)
            assert scores[row, title] == pytest.approx(expected, abs=1e-4)
