"""Settings of the sample-table generator and its presets."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from audiorec.errors import BadSettings
from audiorec.simulator.vocabulary import COUNTRIES, LANGUAGES

Share = float


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _share(default: float) -> float:
    value: float = Field(default, ge=0.0, le=1.0)
    return value


class SignalRates(_Frozen):
    """How often weak signals come before, after and without a stream (all choices of this project)."""

    audiobook_follow_before: Share = _share(0.14)
    """Share of first audiobook streams with an earlier follow of the same title."""
    audiobook_preview_before: Share = _share(0.22)
    """Share of first audiobook streams with an earlier preview of the same title."""
    audiobook_intent_before: Share = _share(0.28)
    """Share of first audiobook streams with an earlier intent to pay for the same title."""
    audiobook_follow_after: Share = _share(0.08)
    """Share of first audiobook streams that a follow comes after."""
    audiobook_follow_only: float = Field(default=0.20, ge=0)
    """Follows of titles chosen but not streamed, per first stream."""
    audiobook_preview_only: float = Field(default=0.60, ge=0)
    """Previews of titles chosen but not streamed, per first stream."""
    audiobook_intent_only: float = Field(default=0.30, ge=0)
    """Intents to pay for titles chosen but not streamed, per first stream."""
    podcast_follow_before: Share = _share(0.10)
    """Share of podcasts taken up with an earlier follow."""
    podcast_preview_before: Share = _share(0.08)
    """Share of podcasts taken up with an earlier preview."""
    podcast_follow_after: Share = _share(0.22)
    """Share of podcasts taken up that a follow comes after."""
    podcast_follow_only: float = Field(default=0.05, ge=0)
    """Follows of podcasts never streamed, per podcast taken up."""
    podcast_preview_only: float = Field(default=0.15, ge=0)
    """Previews of podcasts never streamed, per podcast taken up."""
    lead_days: float = Field(default=1.5, gt=0)
    """Mean days (exponential) from a weak signal to the stream that it precedes."""
    browser_share: Share = _share(0.06)
    """Share of the users without audiobook streams who still leave some weak signals on audiobooks."""
    browser_signals: float = Field(default=2.0, ge=0)
    """Mean weak signals (Poisson) of one such user."""


class LeadingSignals(_Frozen):
    """Weak signals that come by themselves and lead to some of the streams (preset `paper`).

    A user's curiosity has nothing to do with how much they listen, so what a signal says about the next days
    is what it leads to. Rates are a month of 30 days and a user of mean curiosity.
    """

    follows: float = Field(default=0.35, ge=0)
    """Follows of audiobooks a month."""
    previews: float = Field(default=0.7, ge=0)
    """Previews a month."""
    intents: float = Field(default=1.2, ge=0)
    """Intents to pay a month."""
    curiosity_sigma: float = Field(default=0.5, ge=0)
    """Spread (log) of the users' curiosity, mean 1."""
    follow_leads: Share = _share(0.435)
    """Share of follows that lead to a stream of the title, unless it is streamed anyway."""
    preview_leads: Share = _share(0.05)
    """Share of previews that do."""
    intent_leads: Share = _share(0.034)
    """Share of intents to pay that do."""
    lag_days: float = Field(default=3.0, gt=0)
    """Mean days (exponential) from the signal to the stream that it leads to."""
    notice_days: float = Field(default=10.0, gt=0)
    """Mean days (exponential) that future listeners look around before their first stream of their own."""
    browser_share: Share = _share(0.10)
    """Share of the users of music and podcasts only who look around as well."""
    follow_after: Share = _share(0.06)
    """Share of first streams that a follow of the same title comes after."""


class DirtRates(_Frozen):
    """What is wrong with the tables, each as a share of the clean rows of its table.

    Kinds that a reader must reject are *added* rows (made from a random clean row, moved to another
    second of its day), so all clean rows are there; kinds that a reader can mend are done in place.
    """

    duplicate_rows: Share = _share(0.004)
    """Added exact copies of clean rows; every event table."""
    short_streams: Share = _share(0.02)
    """Added streams of 1-29 seconds; every event table."""
    negative_seconds: Share = _share(0.0004)
    """Added streams with -3600 to -1 seconds; every event table."""
    absurd_seconds: Share = _share(0.0003)
    """Added streams of 200,000 to 10,000,000 seconds (2 to 115 days); every event table."""
    unknown_items: Share = _share(0.001)
    """Added rows whose item is not in the catalogue; every event table."""
    unknown_users: Share = _share(0.001)
    """Added rows whose user is not in `users`; every event table."""
    null_users: Share = _share(0.0003)
    """Added rows without a user; every event table."""
    null_items: Share = _share(0.0003)
    """Added rows without an item; every event table."""
    before_2000: Share = _share(0.0002)
    """Added rows dated 1970-01-02 to 1999-12-30, in the folder of the day they came in."""
    after_last_day: Share = _share(0.0002)
    """Added rows dated 1 to 400 days after the last day, in the folder of the day they came in."""
    too_late_rows: Share = _share(0.0002)
    """Added rows that lie 1 to 6 folders past `late_days`; hive layout only."""
    late_rows: Share = _share(0.01)
    """Clean rows that lie 1 to `late_days` folders after their day; hive layout only, in place."""
    mixed_case_events: Share = _share(0.003)
    """Clean rows whose event is written 'Stream', 'FOLLOW', ...; every event table, in place."""
    duplicate_ids: Share = _share(0.003)
    """Added catalogue and user rows that repeat an id (catalogue: with another title)."""
    null_titles: Share = _share(0.004)
    """Catalogue rows without a title, in place; tracks, podcasts, audiobooks."""
    null_descriptions: Share = _share(0.02)
    """Catalogue rows without a description, in place; podcasts, audiobooks."""
    null_genres: Share = _share(0.02)
    """Catalogue rows without a genre or category, in place; tracks, podcasts, audiobooks."""
    null_published_on: Share = _share(0.01)
    """Catalogue rows without a date, in place; podcasts, audiobooks."""
    mixed_case_languages: Share = _share(0.02)
    """Catalogue rows with a language such as 'EN' or 'De', in place; podcasts, audiobooks."""
    lower_case_countries: Share = _share(0.01)
    """Users with a country such as 'us', in place."""
    bad_birth_years: Share = _share(0.004)
    """Users born before 1890 or after the last day, in place."""

    @classmethod
    def none(cls) -> DirtRates:
        """Clean tables: every rate zero."""
        return cls.model_validate(dict.fromkeys(cls.model_fields, 0.0))


class SimulatorConfig(_Frozen):
    """Everything that decides the sample tables; equal settings and code give equal bytes.

    All values are choices of this project unless a field says otherwise; none describes a real service.
    """

    seed: int = Field(default=7, ge=0)
    """Seed of all random streams."""
    n_users: int = Field(default=6_000, ge=1)
    """Rows of `users` (before dirt), those without any event included."""
    n_audiobooks: int = Field(default=800, ge=2)
    """Audiobook titles."""
    n_podcasts: int = Field(default=1_200, ge=2)
    """Podcast shows."""
    n_artists: int = Field(default=600, ge=2)
    """Music artists."""
    n_tracks: int = Field(default=4_000, ge=2)
    """Music tracks; each artist has one at least."""
    last_day: date = date(2026, 11, 23)
    """Last UTC day with events."""
    days: int = Field(default=125, ge=20, le=3_000)
    """Length of the period in days, `last_day` included."""
    languages: tuple[str, ...] = LANGUAGES
    """ISO 639-1 codes the catalogue is written in; the countries of the users follow from them."""
    layout: Literal["hive", "flat"] = "hive"
    """Event tables as `NAME/date=YYYY-MM-DD/part-0000.parquet` (hive) or `NAME.parquet` (flat)."""
    late_days: int = Field(default=3, ge=0)
    """Days after its own that a row may still come in (source_tables.md)."""
    chunk_users: int = Field(default=50_000, ge=1)
    """Users drawn at a time: bounds the memory. Another value gives other tables."""

    no_events_share: Share = _share(0.04)
    """Users without any event."""
    music_only_share: Share = _share(0.18)
    """Users who only ever play music."""
    audiobook_share: Share = _share(0.50)
    """Users who stream audiobooks by the last day; the others know music and podcasts."""
    audiobook_without_podcasts: Share = _share(0.12)
    """Audiobook listeners who have no podcasts."""
    adopted_at_start: Share = _share(0.22)
    """Audiobook listeners who begin at the first day; the others come in ever faster until the last."""
    joined_in_period: Share = _share(0.12)
    """Users who join the service during the period."""

    audiobook_starts: float = Field(default=2.0, gt=0)
    """Median titles an audiobook listener takes up in 30 days."""
    podcast_starts: float = Field(default=4.5, gt=0)
    """Median shows a podcast listener takes up in 30 days."""
    music_plays: float = Field(default=0.9, gt=0)
    """Median tracks a listener plays a day."""
    activity_sigma: float = Field(default=0.7, ge=0)
    """Spread (log) of the activity that a user has in all domains."""
    domain_sigma: float = Field(default=0.6, ge=0)
    """Spread (log) of the activity that a user has in one domain."""
    audiobook_sessions: float = Field(default=3.5, ge=1)
    """Mean listening sessions of a title, first one included (geometric)."""
    podcast_sessions: float = Field(default=5.0, ge=1)
    """Mean listening sessions of a show, first one included (geometric)."""
    stamina_sigma: float = Field(default=0.0, ge=0)
    """Spread (log) of the users' stamina, mean 1: it multiplies the sessions after the first of all that they hear."""
    artists_per_user: float = Field(default=14.0, ge=1)
    """Median artists a user ever plays (log-normal, 60 at most)."""

    taste_concentration: float = Field(default=3.0, gt=0)
    """Sum of the Dirichlet parameters of a user's topics; lower is more single-minded."""
    item_concentration: float = Field(default=1.0, gt=0)
    """Sum of the Dirichlet parameters of the side topics of an item; its main topic holds over half."""
    podcast_taste_shared: Share = _share(0.80)
    """How much of the taste in podcasts is the user's common taste; the rest is drawn for the domain."""
    audiobook_taste_shared: Share = _share(0.80)
    """The same in audiobooks."""
    music_taste_shared: Share = _share(0.60)
    """The same in music."""
    affinity_weight: float = Field(default=2.5, ge=0)
    """Utility of a perfect topic match (cosine 1) over none, in units of the Gumbel noise."""
    tone_weight: float = Field(default=0.7, ge=0)
    """Utility of a tone that a user likes by one standard deviation."""
    home_weight: float = Field(default=0.8, ge=0)
    """Utility of an item of the user's own country."""
    candidates: int = Field(default=24, ge=2)
    """Items on the shelf that a user chooses from each time (drawn by topic, language and popularity)."""
    foreign_language_share: Share = _share(0.15)
    """Choices of English items by users with another main language."""

    popularity_sigma: float = Field(default=1.8, ge=0)
    """Spread (log) of the items' popularity: the long tail."""
    drift_sigma: float = Field(default=0.35, ge=0)
    """Weekly innovation (log) of an item's popularity, a mean-reverting walk."""
    novelty_boost: float = Field(default=6.0, ge=0)
    """Popularity on the day of publication, as a multiple of an old item's, added to it."""
    novelty_days: float = Field(default=21.0, gt=0)
    """Days after which the boost has fallen to 1/e."""
    popularity_step_days: int = Field(default=1, ge=1)
    """Days between two updates of popularity and of what is published."""
    published_in_period: Share = _share(0.45)
    """Audiobooks that come out during the period: the catalogue is new and growing."""
    podcasts_published_in_period: Share = _share(0.12)
    """Podcasts that come out during the period."""
    unstreamed_new_share: Share = _share(0.02)
    """Audiobooks of the last 10 days that nobody has touched yet (one at least, if not 0)."""
    null_countries: Share = _share(0.03)
    """Users without a country."""
    null_birth_years: Share = _share(0.12)
    """Users without a birth year."""

    activity_limit: float | None = Field(default=None, gt=0)
    """No user is more active than this many times the median in a domain; none: no limit."""

    signals: SignalRates = SignalRates()
    """Weak signals, planted around streams."""
    leading: LeadingSignals | None = None
    """If given, weak signals on audiobooks come by these rates instead, and lead to streams; then the truth is
    written beside the tables (`audiorec.simulator.oracle`)."""
    dirt: DirtRates = DirtRates()
    """Dirt."""

    @property
    def first_day(self) -> date:
        """First UTC day with events."""
        return self.last_day - timedelta(days=self.days - 1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = sorted(set(self.languages) - set(LANGUAGES))
        if unknown or not self.languages or len(set(self.languages)) != len(self.languages):
            raise ValueError(
                f"languages: {list(self.languages)} must be different codes out of {list(LANGUAGES)}"
                + (f"; unknown: {unknown}" if unknown else "")
            )
        if not any(language in self.languages for language, _ in COUNTRIES.values()):
            raise ValueError("languages: no country speaks any of them")
        total = self.no_events_share + self.music_only_share + self.audiobook_share
        if total > 1:
            raise ValueError(
                f"no_events_share + music_only_share + audiobook_share is {total:.3f}, expected at most 1"
            )
        if self.n_tracks < self.n_artists:
            raise ValueError(
                f"n_tracks is {self.n_tracks}, fewer than n_artists {self.n_artists}: each needs one"
            )
        if self.last_day.year < 2001 or self.last_day.year > 2200:
            raise ValueError(f"last_day is {self.last_day}, expected a day in 2001-2200")
        return self


PRESETS: dict[str, SimulatorConfig] = {
    "tiny": SimulatorConfig(
        n_users=150,
        n_audiobooks=60,
        n_podcasts=80,
        n_artists=50,
        n_tracks=200,
        days=45,
        dirt=DirtRates(
            negative_seconds=0.002,
            absurd_seconds=0.002,
            unknown_items=0.003,
            unknown_users=0.003,
            null_users=0.002,
            null_items=0.002,
            before_2000=0.002,
            after_last_day=0.002,
            too_late_rows=0.002,
            duplicate_rows=0.01,
            duplicate_ids=0.02,
            null_titles=0.02,
            null_descriptions=0.04,
            mixed_case_languages=0.04,
            lower_case_countries=0.03,
            bad_birth_years=0.02,
        ),
    ),
    "sample": SimulatorConfig(),
    "paper": SimulatorConfig(
        n_users=10_000,
        n_audiobooks=2_000,
        n_podcasts=5_000,
        days=90,
        layout="flat",
        chunk_users=25_000,
        no_events_share=0.02,
        music_only_share=0.23,
        audiobook_share=0.40,
        audiobook_without_podcasts=0.12,
        adopted_at_start=0.25,
        audiobook_starts=0.9,
        podcast_starts=2.2,
        music_plays=0.4,
        activity_sigma=0.85,
        domain_sigma=0.4,
        activity_limit=40.0,
        audiobook_sessions=6.0,
        podcast_sessions=11.0,
        stamina_sigma=2.3,
        taste_concentration=2.5,
        podcast_taste_shared=0.9,
        audiobook_taste_shared=0.9,
        affinity_weight=3.0,
        candidates=24,
        popularity_sigma=1.6,
        drift_sigma=0.25,
        popularity_step_days=3,
        leading=LeadingSignals(),
        dirt=DirtRates.none(),
    ),
}
"""Named settings: `tiny` for tests (under a second), `sample` for the demo, `paper` for experiments: calibrated
to section 3 of the paper, without dirt, with the truth beside the tables."""

PODCASTS_PER_AUDIOBOOK = 2.5
"""Shows a title when `sized` is given a number of titles."""


def sized(
    name: str, users: int | None = None, audiobooks: int | None = None, **overrides: object
) -> SimulatorConfig:
    """A preset with another number of users or of audiobooks; podcasts keep pace with the audiobooks.

    Raises: BadSettings as `preset`.
    """
    if users is not None:
        overrides["n_users"] = users
    if audiobooks is not None:
        overrides["n_audiobooks"] = audiobooks
        overrides.setdefault("n_podcasts", max(2, round(PODCASTS_PER_AUDIOBOOK * audiobooks)))
    return preset(name, **overrides)


def preset(name: str, **overrides: object) -> SimulatorConfig:
    """The settings of a preset with some fields replaced.

    Raises: BadSettings for an unknown preset or field, or a value out of range.
    """
    if name not in PRESETS:
        raise BadSettings(f"generate: preset '{name}' is unknown; expected one of {sorted(PRESETS)}")
    try:
        # Validated anew, as model_copy(update=...) would take any value.
        return SimulatorConfig.model_validate({**PRESETS[name].model_dump(), **overrides})
    except ValidationError as error:
        lines = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc']) or 'settings'}: {problem['msg']}"
            f" (found {problem['input']!r})"
            if problem["loc"]
            else problem["msg"]
            for problem in error.errors()
        )
        raise BadSettings(f"generate: {lines}") from None
