"""Why extract sets rows aside: the column each reason is about, whether it is a fault, and its remedy.

A *fault* means that the source is wrong; faults are counted against `validation.max_reject_share`. A *rule*
is how we count: short plays are ordinary, however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ITEM_COLUMNS = {"music": "track_id", "podcast": "podcast_id", "audiobook": "audiobook_id"}
KEY_COLUMNS = {
    "users": "user_id",
    "tracks": "track_id",
    "podcasts": "podcast_id",
    "audiobooks": "audiobook_id",
}


@dataclass(frozen=True)
class Reason:
    column: str
    kind: Literal["fault", "rule"]
    remedy: str


_OWN_KEY = "its key"
_ITEM = "its title's id"

REASONS = {
    "unreadable_time": Reason(
        "occurred_at", "fault", "write occurred_at as a timestamp in UTC, e.g. 2026-11-23 17:05:00"
    ),
    "null_time": Reason(
        "occurred_at", "fault", "find why the source loses the time of an event, then reload the day"
    ),
    "before_2000": Reason(
        "occurred_at",
        "fault",
        "a clock at zero or seconds read as milliseconds: mend the source, then reload",
    ),
    "arrived_before_it_happened": Reason(
        "occurred_at",
        "fault",
        "the folder's date is before the event's: check the device clock or the time zone of date=…",
    ),
    "too_late": Reason(
        "occurred_at",
        "fault",
        "the row came more than extract.late_days after its day: raise that or move it to its folder",
    ),
    "null_user_id": Reason("user_id", "fault", "send the user's id, or leave out plays without an account"),
    "null_item_id": Reason(_ITEM, "fault", "send the title's id"),
    "null_event": Reason("event", "fault", "send the kind of event"),
    "unknown_event": Reason(
        "event",
        "fault",
        "map it to stream, follow, preview or intent_to_pay (a .sql file of views can), or leave it out",
    ),
    "unreadable_seconds": Reason(
        "seconds_played", "fault", "write seconds_played as a whole number of seconds"
    ),
    "negative_seconds": Reason(
        "seconds_played", "fault", "end before start: mend the player's clock, then reload the day"
    ),
    "absurd_seconds": Reason(
        "seconds_played",
        "fault",
        "longer than extract.max_seconds: are these milliseconds? Then divide by 1000",
    ),
    "null_seconds": Reason(
        "seconds_played", "fault", "a stream needs its length: send it, then reload the day"
    ),
    "duplicate": Reason(
        "occurred_at",
        "fault",
        "the same event came twice; one was kept. Look for a partition loaded more than once",
    ),
    "too_short": Reason(
        "seconds_played",
        "rule",
        "shorter than extract.min_stream_seconds; nothing to do unless the unit changed",
    ),
    "over_daily_cap": Reason(
        "user_id",
        "rule",
        "more events than extract.max_events_per_user_day: look at the account, block it if it is a bot",
    ),
    "unknown_item_id": Reason(
        _ITEM, "fault", "the catalogue lacks these ids: load the catalogue, then run extract again"
    ),
    "unknown_user_id": Reason(
        "user_id", "fault", "the users table lacks these ids: load it, then run extract again"
    ),
    "null_id": Reason(_OWN_KEY, "fault", "give each row its id, or leave the row out"),
    "duplicate_id": Reason(
        _OWN_KEY,
        "fault",
        "one row an id (or a valid_from on each version); the first in order of columns was kept",
    ),
    "implausible_birth_year": Reason(
        "birth_year",
        "fault",
        "younger than 5 or older than 120: send NULL for an unknown year; the user was kept",
    ),
}
_OTHER = Reason("", "fault", "see the reason's words in sql/typed_events.sql")


def reason_of(name: str) -> Reason:
    """What is known of a reason; one that extract has learnt since counts as a fault."""
    return REASONS.get(name, _OTHER)


def column_of(name: str, table: str) -> str:
    """The source column of `table` that a reason is about."""
    column = reason_of(name).column
    if column == _ITEM:
        return ITEM_COLUMNS.get(table.removesuffix("_events"), "")
    return KEY_COLUMNS.get(table, "") if column == _OWN_KEY else column


def is_fault(name: str) -> bool:
    return reason_of(name).kind == "fault"
