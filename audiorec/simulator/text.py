"""Titles, blurbs and names composed from the topic vocabularies.

An item's text tells its main topic (most of its words), a second topic (one sentence) and its tone (one
sentence): what a reader of real blurbs could learn too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from audiorec.simulator.vocabulary import PATTERNS, TONE_SENTENCES, TOPICS, WORDS, Patterns

_PICKS = 12
_TRIES = 12


@dataclass(frozen=True)
class Texts:
    """Texts of n items, in their order: `creator` is an author (audiobooks) or a publisher (podcasts)."""

    title: list[str]
    description: list[str]
    creator: list[str]


def _capital(text: str) -> str:
    """Upper-case the first letter only (`str.capitalize` would lower the rest)."""
    return text[:1].upper() + text[1:]


def _name(patterns: Patterns, first: int, last: int) -> str:
    return (
        f"{patterns.first_names[first % len(patterns.first_names)]} "
        f"{patterns.last_names[last % len(patterns.last_names)]}"
    )


def _compose(
    kind: str, language: str, topic: int, second: int, tone: int, pick: list[int]
) -> tuple[str, str, str]:
    patterns = PATTERNS[language]
    main = WORDS[TOPICS[topic].name, language]
    side = WORDS[TOPICS[second].name, language]
    n = len(main.nouns)
    a = pick[0] % n
    b = (a + 1 + pick[1] % (n - 1)) % n
    fill = {
        "a": main.nouns[a],
        "b": main.nouns[b],
        "c": side.nouns[pick[2] % n],
        "label": main.label,
        "city": patterns.cities[pick[3] % len(patterns.cities)],
        "name": _name(patterns, pick[4], pick[5]),
    }
    titles = {"audiobook": patterns.book_titles, "podcast": patterns.podcast_titles}.get(
        kind, patterns.track_titles
    )
    title = _capital(titles[pick[6] % len(titles)].format(**fill))
    if kind == "track":
        return title, "", ""
    if kind == "podcast":
        sentence = patterns.podcast_sentences[pick[7] % len(patterns.podcast_sentences)]
        parts = [sentence.format(**fill), main.sentence, TONE_SENTENCES[language][tone], patterns.episode]
        creator = f"{patterns.last_names[pick[8] % len(patterns.last_names)]} Media"
    else:
        first = patterns.book_sentences[pick[7] % len(patterns.book_sentences)]
        other = patterns.book_sentences[pick[9] % len(patterns.book_sentences)]
        # The second sentence brings in the side topic, with other nouns of the main one.
        refill = fill | {"a": side.nouns[pick[10] % n], "b": main.nouns[pick[11] % n]}
        parts = [first.format(**fill), main.sentence, other.format(**refill), TONE_SENTENCES[language][tone]]
        # An author writes in one language and mostly on one topic: three authors share a topic's name space.
        creator = _name(patterns, 3 * topic + pick[8] % 3, 5 * topic + pick[8] % 3)
    return title, " ".join(_capital(part) for part in parts), creator


def compose(
    rng: np.random.Generator,
    kind: str,
    languages: list[str],
    topics: NDArray[np.int64],
    seconds: NDArray[np.int64],
    tones: NDArray[np.int64],
    seen: dict[tuple[str, str], int] | None = None,
) -> Texts:
    """Write title, description and author or publisher of each item.

    Shapes: `languages`, `topics` (main), `seconds` (second topic) and `tones` all [n]; `kind` is 'audiobook',
    'podcast' or 'track' (tracks get a title only). `seen` carries the titles given so far from call to call; it
    holds at most as many as the vocabulary can make.
    """
    picks = rng.integers(0, 2**31, size=(len(languages), _PICKS)).tolist()
    seen = {} if seen is None else seen
    rows = []
    for language, topic, second, tone, pick in zip(
        languages, topics.tolist(), seconds.tolist(), tones.tolist(), picks, strict=True
    ):
        row = _compose(kind, language, topic, second, tone, pick)
        for attempt in range(1, _TRIES):
            if (language, row[0]) not in seen:
                break
            row = _compose(kind, language, topic, second, tone, [value // (attempt + 1) for value in pick])
        # A topic has some 140 titles a language; past that they become series: 'The dragon 2'.
        part = seen[language, row[0]] = seen.get((language, row[0]), 0) + 1
        rows.append((f"{row[0]} {part}" if part > 1 else row[0], row[1], row[2]))
    return Texts([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
