"""The oracle: how probable the first stream of each audiobook by a user truly is on the coming days.

It knows what the simulation knows on a day: tastes, languages, popularity as it stands, what is published, and
which signals given so far may still lead to a stream. It knows no dice: not what will be chosen, nor how popularity
will drift. So its hit rate is the ceiling for any recommender of that day.

    oracle = Oracle.load("tables")
    scores = oracle.scores(user_ids, audiobook_ids, date(2026, 11, 10), horizon_days=14)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from audiorec.errors import BadData
from audiorec.simulator.config import LeadingSignals, SimulatorConfig
from audiorec.simulator.listening import DAY_SECONDS, FOLLOW, INTENT, PREVIEW, Calendar
from audiorec.simulator.truth import TRUTH_MARKER, truth_of
from audiorec.simulator.world import Shelf, block_starts

_BLOCK = 256
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Oracle:
    """True propensities of one simulation. `users` and `titles` map ids to rows of the other fields."""

    config: SimulatorConfig
    simulator_hash: str
    users: dict[str, int]
    titles: dict[str, int]
    shelf: Shelf
    language: NDArray[np.int64]
    country: NDArray[np.int64]
    taste: Matrix
    tone: Matrix
    starts_a_day: Matrix
    adopted_day: NDArray[np.int64]
    curiosity: Matrix
    looks_since: NDArray[np.int64]
    signals: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Matrix]
    """(user row, title row, event, day with fraction) by user row."""

    @classmethod
    def load(cls, tables: Path | str, user_ids: Sequence[str] | None = None) -> Oracle:
        """Read the truth behind the tables in a folder, of all users or of some.

        Raises: BadData if there is no truth behind them, or it belongs to other tables.
        """
        folder = truth_of(tables)
        try:
            record = json.loads((folder / TRUTH_MARKER).read_text(encoding="utf-8"))
            made = json.loads((Path(tables).expanduser() / "generated.json").read_text(encoding="utf-8"))
            chosen = None if user_ids is None else [("user_id", "in", list(user_ids))]
            people = pq.read_table(folder / "users.parquet", filters=chosen)
            given = pq.read_table(folder / "signals.parquet", filters=chosen)
            titles = pq.read_table(folder / "audiobooks.parquet")
            config = SimulatorConfig.model_validate(record["config"])
        except (OSError, ValueError, KeyError) as error:
            raise BadData(
                f"oracle: no truth behind the tables in {tables} ({error}); it is written beside them by"
                " `audiorec generate --preset paper`"
            ) from error
        if made.get("config") != record["config"]:
            raise BadData(f"oracle: {folder} is not the truth behind {tables}; generate the tables again")
        users = {user: row for row, user in enumerate(people["user_id"].to_pylist())}
        ids = titles["audiobook_id"].to_pylist()
        rows = {title: row for row, title in enumerate(ids)}
        language = _numbers(titles, "language")
        shelf = Shelf(
            kind="audiobook",
            ids=ids,
            topics=_matrix(titles, "topics").astype(np.float32),
            main=_matrix(titles, "topics").argmax(axis=1),
            tone=_numbers(titles, "tone"),
            language=language,
            home=_numbers(titles, "home"),
            published_day=_numbers(titles, "published_day"),
            log_popularity=titles["log_popularity"].to_numpy(),
            drift=_matrix(titles, "drift").T,
            block_start=block_starts(language, len(config.languages)),
            novelty_boost=config.novelty_boost,
            novelty_days=config.novelty_days,
        )
        user = np.array([users[name] for name in given["user_id"].to_pylist()], np.int64)
        item = np.array([rows[name] for name in given["audiobook_id"].to_pylist()], np.int64)
        order = np.argsort(user, kind="stable")
        at = _numbers(given, "at_us") / (DAY_SECONDS * 1e6)
        return cls(
            config=config,
            simulator_hash=record["simulator_hash"],
            users=users,
            titles=rows,
            shelf=shelf,
            language=_numbers(people, "language"),
            country=_numbers(people, "country"),
            taste=_matrix(people, "taste"),
            tone=_matrix(people, "tone"),
            starts_a_day=people["starts_a_day"].to_numpy(),
            adopted_day=_numbers(people, "adopted_day"),
            curiosity=people["curiosity"].to_numpy(),
            looks_since=_numbers(people, "looks_since"),
            signals=(user[order], item[order], _numbers(given, "event")[order], at[order]),
        )

    def scores(
        self, user_ids: Sequence[str], audiobook_ids: Sequence[str], day: date, horizon_days: int = 14
    ) -> NDArray[np.float32]:
        """Probability of a first stream [users, audiobooks] from `day` on for `horizon_days`, as known when it begins.

        It holds for titles that the user has not streamed yet; a title not published by `day` has 0. Users who never
        start anything are given the order of their tastes, by tiny values.

        Raises: BadData for an id that the simulation does not know, or a day outside of it.
        """
        number = (day - self.config.first_day).days
        if not 0 <= number < self.config.days:
            raise BadData(
                f"oracle: day {day} lies outside of the simulation, {self.config.first_day} to"
                f" {self.config.last_day}"
            )
        who = _rows(self.users, user_ids, "user_id")
        which = _rows(self.titles, audiobook_ids, "audiobook_id")
        found = np.empty((len(who), len(which)), np.float32)
        for start in range(0, len(who), _BLOCK):
            block = who[start : start + _BLOCK]
            expected = self.choices(block, number)
            expected *= self._starts(block, number, horizon_days)[:, None]
            self._add_pulls(expected, block, number, horizon_days)
            found[start : start + _BLOCK] = -np.expm1(-expected[:, which])
        return found

    def choices(self, who: NDArray[np.int64], day: int) -> Matrix:
        """[users, titles] probability of each title, would the user choose one on this day; rows sum to 1 or 0."""
        config, shelf = self.config, self.shelf
        step = config.popularity_step_days
        weights = shelf.weights(day // step * step)
        chance = np.zeros((len(who), len(shelf.ids)))
        share: dict[int, Matrix] = {}
        own = self.language[who]
        for language in np.unique(own).tolist():
            share[language] = (own == language).astype(np.float64)
        if "en" in config.languages:
            english = config.languages.index("en")
            foreign = config.foreign_language_share
            share = {language: (1 - foreign) * part for language, part in share.items()}
            share[english] = share.get(english, np.zeros(len(who))) + foreign
        for language, part in share.items():
            block = slice(shelf.block_start[language], shelf.block_start[language + 1])
            if not weights[block].any():  # Nothing in the language yet: any language will do.
                block = slice(0, len(shelf.ids))
            rows = np.flatnonzero(part > 0)
            chance[rows, block] += part[rows, None] * self._from_shelf(who[rows], block, weights[block])
        return chance

    def _from_shelf(self, who: NDArray[np.int64], block: slice, weights: Matrix) -> Matrix:
        """Probability of each title of one language to be taken from a shelf of `candidates` random ones.

        Each place of the shelf holds title a with probability q(a). Against the other places, whose sum of exp(utility)
        has mean m and variance v, a is taken with probability e / (e + s); averaged over s to second order this is
        e / (e + m) * (1 + v / (e + m)^2).
        """
        config, shelf = self.config, self.shelf
        topics = shelf.topics[block].astype(np.float64)
        on_topic = topics.T @ weights
        if not (on_topic > 0).all():
            return np.zeros((len(who), len(topics)))
        drawn = (self.taste[who] / on_topic) @ topics.T * weights
        unit = self.taste[who] / np.linalg.norm(self.taste[who], axis=1, keepdims=True)
        utility = config.affinity_weight * (unit @ shelf.unit_topics[block].T.astype(np.float64))
        utility += config.tone_weight * self.tone[who][:, shelf.tone[block]]
        utility += config.home_weight * (shelf.home[block][None, :] == self.country[who][:, None])
        strength = np.exp(utility)
        others = config.candidates - 1
        mean = (drawn * strength).sum(axis=1, keepdims=True)
        spread = others * np.maximum((drawn * strength**2).sum(axis=1, keepdims=True) - mean**2, 0.0)
        total = strength + others * mean
        chance = drawn * strength / total * (1 + spread / total**2)
        normal: Matrix = chance / chance.sum(axis=1, keepdims=True)
        return normal

    def _starts(self, who: NDArray[np.int64], day: int, horizon: int) -> Matrix:
        """Expected titles begun [users] that no signal given so far leads to."""
        calendar = Calendar(self.config, "audiobook")
        end = np.full(len(who), day + horizon)
        own = self.starts_a_day[who] * calendar.mass(np.maximum(self.adopted_day[who], day), end)
        leading = _leading(self.config)
        led = leading.follows * leading.follow_leads + leading.previews * leading.preview_leads
        led += leading.intents * leading.intent_leads
        looks = calendar.mass(np.maximum(self.looks_since[who], day), end)
        return np.maximum(own + self.curiosity[who] * led / 30 * looks, 1e-9)

    def _add_pulls(self, expected: Matrix, who: NDArray[np.int64], day: int, horizon: int) -> None:
        """Add the titles that a signal given before `day` may yet lead to, given that it has not so far."""
        leading = _leading(self.config)
        user, item, event, at = self.signals
        lead = np.zeros(4)
        lead[[FOLLOW, PREVIEW, INTENT]] = leading.follow_leads, leading.preview_leads, leading.intent_leads
        for row, own in enumerate(who.tolist()):
            rows = slice(*np.searchsorted(user, [own, own + 1]))
            before = at[rows] < day
            share = lead[event[rows][before]]
            still = np.exp(-(day - at[rows][before]) / leading.lag_days)
            later = still * (1 - np.exp(-horizon / leading.lag_days))
            chance = share * later / np.maximum(1 - share * (1 - still), 1e-9)
            # As a rate, which adds up over several ways to the same title.
            np.add.at(expected[row], item[rows][before], -np.log1p(-np.minimum(chance, 1 - 1e-9)))


def _leading(config: SimulatorConfig) -> LeadingSignals:
    assert config.leading is not None  # No truth is written without.
    return config.leading


def _matrix(table: pa.Table, column: str) -> Matrix:
    lists = table[column].combine_chunks()
    flat: Matrix = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    return flat.reshape(len(lists), -1) if len(lists) else flat.reshape(0, 1)


def _numbers(table: pa.Table, column: str) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = table[column].to_numpy().astype(np.int64)
    return numbers


def _rows(known: dict[str, int], ids: Sequence[str], name: str) -> NDArray[np.int64]:
    try:
        return np.array([known[str(one)] for one in ids], np.int64)
    except KeyError as error:
        raise BadData(f"oracle: {name} {error} is not of this simulation") from None
