"""Release control (design 7): which version serves, and who may change that. Rollback, rejection, hold.

Everything that moves an alias goes through `ReleaseControl`, under the registry's lock, with an entry in the history
that is written first. Each step may be done twice without harm, so what a killed process left open is finished by
whoever comes next: a person's decision (rollback, rejection, hold) is carried out, a promotion is left to the gate.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from audiorec import champion as released
from audiorec.errors import AudiorecError, BadSettings, Corrupt
from audiorec.gate import Candidate, Champion, Verdict, decide
from audiorec.history import Action, Entry, History, Outcome, Recorded, VersionRef
from audiorec.registry import CHALLENGER, CHAMPION, Hold, Registry, Version
from audiorec.settings import HOLD_DAYS, Settings, load_settings
from audiorec.store import Store

NO_REASON = "no reason was given"
_RESULT_VARIABLE = "AUDIOREC_RESULT"


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did: from which version to which, until when nothing is promoted, and whether it did it now."""

    before: VersionRef
    after: VersionRef
    until: str | None
    already: bool
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """One line for the log and the UI."""
        held = "nothing is held"
        if self.until is not None:
            held = f"nothing is promoted until {self.until or 'the hold is taken back'}"
        done = "was rolled back already" if self.already else "rolled back"
        return f"champion {done} from version {self.before} to {self.after}; {self.before.version} is rejected; {held}"


class ReleaseControl:
    """Moves the aliases of the settings' registered model.

    Args:
        now: the clock; entries and holds carry its time.
        wait_seconds: for how long to wait for others who move aliases.
    """

    def __init__(
        self,
        settings: Settings,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        wait_seconds: float = 1800,
    ) -> None:
        self._settings, self._wait_seconds = settings, wait_seconds
        self.registry = Registry(settings)
        self.store = Store(settings.store.uri, settings.store.scratch)
        self.history = History(self.store, self.registry.name)
        self._now = now

    @contextmanager
    def exclusive(self, wait_seconds: float | None = None) -> Iterator[list[Entry]]:
        """Nobody else moves aliases meanwhile; what a killed process left open is settled first, and yielded.

        Raises:
            Busy: not had within `wait_seconds` (None: those of this object).
        """
        with self.registry.exclusive(self._wait_seconds if wait_seconds is None else wait_seconds):
            yield self._settle()

    # --- what can be done; `move` asks that the caller is inside `exclusive`

    def move(self, alias: str, version: Version, action: Action, who: str, why: str, verdict: str) -> None:
        """Move an alias to a version and write the champion's pointer; does nothing more if it is there already."""
        before = self.registry.alias(alias)
        if before is None or before.number != version.number:
            entry = self._entry(
                action, who, why, alias=alias, before=_named(before), after=_named(version), verdict=verdict
            )
            number = self.history.begin(entry)
            self._point(alias, version)
            self.history.finish(number, "done", self._now())
        elif alias == CHAMPION:
            self._point(alias, version)

    def promote(
        self, number: str, *, why: str, who: str, expected: str | None = None, override_hold: bool = False
    ) -> Version:
        """Make a registered version the champion, as `promote = force` would: forward in data time, and never an unfit one.

        Args:
            expected: number that the champion must have, "" for none.
            override_hold: in spite of a hold.

        Raises:
            BadSettings: there is no such version, the champion is not the expected one, or the version may not be promoted.
            Corrupt: files of the version are missing or damaged.
        """
        with self.exclusive():
            version = self._version(number)
            serving = self.registry.alias(CHAMPION)
            self._expect(serving, expected)
            if serving is not None and serving.number == number:
                return version
            verdict = self._forced(version, serving, override_hold)
            if not verdict.promoted:
                raise BadSettings(
                    f"version {number} ({version.as_of}) cannot be promoted: {'; '.join(verdict.reasons)}"
                )
            self._verify(version)
            self.move(CHAMPION, version, "promote", who, " ".join(why.split()) or NO_REASON, verdict.line())
            policy = "override_hold" if override_hold else "force"
            self.registry.record_verdict(version, verdict.line(), policy, "manual", promoted=True)
        return version

    def _forced(self, version: Version, serving: Version | None, override_hold: bool) -> Verdict:
        """The gate's word on a version that a person wants."""
        if version.rejected:
            return Verdict(False, "refused", ["it was rejected and is never eligible again"])
        judged = version.tags.get("verdict")
        if judged is None:
            return Verdict(
                False, "refused", ["the gate has not judged it yet; run promote for its date first"]
            )
        insane = [judged] if judged.startswith("refused: sanity check failed") else []
        held = self.registry.hold(self._now())
        return decide(
            Candidate(version.as_of, version.hit_rate, 0, insane),
            None if serving is None else Champion(serving.number, serving.as_of, None),
            [],
            self._settings.release,
            policy="override_hold" if override_hold else "force",
            run_type="manual",
            hold=held.line() if held else None,
        )

    @staticmethod
    def _expect(serving: Version | None, expected: str | None) -> None:
        """Raise BadSettings if the champion is not the one that somebody had before the eyes."""
        found = "" if serving is None else serving.number
        if expected is not None and found != expected:
            raise BadSettings(
                f"the champion is {f'version {found} ({serving.as_of})' if serving else 'nobody'}, not {expected or 'nobody'}: "
                "it was moved already. `audiorec history` shows by whom; nothing was changed"
            )

    def rollback(
        self,
        *,
        to: str | None = None,
        expected: str | None = None,
        why: str,
        who: str,
        hold_days: float = HOLD_DAYS,
        request: str = "",
    ) -> RolledBack:
        """Make an earlier version the champion at once, reject the present one, and hold the alias.

        Args:
            to: number of a version; by default the last good one: promoted, not rejected, of the newest data date
                that is not after the champion's, with every file as it was written.
            expected: number that the champion must have; a rollback typed twice then moves nothing twice.
            hold_days: for how long `promote` registers only; 0 for no hold.
            request: whose asking this answers; the same asked again does nothing more and says what was done.

        Raises:
            BadSettings: there is no champion, it is not the expected one, or the named version cannot be gone back to.
            BadData: no version is left to go back to.
            Corrupt: files of the named version are missing or damaged.
        """
        if hold_days < 0:
            raise BadSettings(
                f"hold days are {hold_days:g}; give 0 for no hold, or how many days it shall last"
            )
        with self.exclusive() as settled:
            done = self._answered(request)
            if done is not None:
                return done
            for entry in settled:
                # The same person asking again after a kill: once is what was meant.
                if (
                    entry.action == "rollback"
                    and entry.before
                    and entry.after
                    and to in (None, entry.after.version)
                ):
                    return RolledBack(entry.before, entry.after, entry.until, True)
            serving = self.registry.alias(CHAMPION)
            if serving is None:
                raise BadSettings(
                    f"{self.registry.name} has no champion, so there is nothing to go back from"
                )
            self._expect(serving, expected)
            target, notes = self._target(serving, to)
            until = None
            if hold_days:
                until = _stamp(self._now() + timedelta(days=hold_days))
            entry = self._entry(
                "rollback",
                who,
                why,
                alias=CHAMPION,
                before=_named(serving),
                after=_named(target),
                until=until,
                request=request,
            )
            number = self.history.begin(entry)
            self._carry_out(entry)
            self.history.finish(number, "done", self._now())
        return RolledBack(VersionRef(serving.number, str(serving.as_of)), _ref(target), until, False, notes)

    def reject(self, number: str, *, why: str, who: str) -> Version:
        """Mark a version as never eligible again.

        Raises:
            BadSettings: there is no such version, or it serves (that takes a rollback).
        """
        with self.exclusive():
            version = self._version(number)
            serving = self.registry.alias(CHAMPION)
            if serving is not None and serving.number == number:
                raise BadSettings(
                    f"version {number} ({version.as_of}) is the champion; `audiorec rollback` rejects it and puts an earlier "
                    "one in its place"
                )
            if not version.rejected:
                self._do(self._entry("reject", who, why, before=_named(version)))
        return version

    def hold(self, *, why: str, who: str, until: datetime | None) -> None:
        """Keep `promote` from moving the champion, until a time or (None) until it is taken back."""
        if until is not None and until <= self._now():
            raise BadSettings(
                f"the hold would end {until:%Y-%m-%d %H:%M} UTC, which is over; give a later end"
            )
        with self.exclusive():
            self._do(self._entry("hold", who, why, until=_stamp(until) if until else ""))

    def release_hold(self, *, why: str, who: str) -> Hold | None:
        """Take the hold back; returns the one that was, None if there was none."""
        with self.exclusive():
            held = self.registry.hold(self._now())
            if held is not None:
                self._do(self._entry("release_hold", who, why))
        return held

    # --- how

    def _do(self, entry: Entry) -> None:
        number = self.history.begin(entry)
        self._carry_out(entry)
        self.history.finish(number, "done", self._now())

    def _carry_out(self, entry: Entry) -> None:
        """A person's decision, step by step; every step may be done again."""
        at = datetime.fromisoformat(entry.at)
        if entry.action == "release_hold":
            self.registry.set_hold(None)
        elif entry.until is not None:
            # Before the alias moves: a killed rollback must not leave a moment in which the next run undoes it.
            self._hold_at_least(
                Hold(entry.who, entry.why, at, datetime.fromisoformat(entry.until) if entry.until else None),
                entry.action,
            )
        if entry.action in ("rollback", "reject") and entry.before is not None:
            version = self._version(entry.before.version)
            if not version.rejected:
                self.registry.reject(version, entry.who, entry.why, at)
            challenger = self.registry.alias(CHALLENGER)
            if challenger is not None and challenger.number == version.number:
                self._drop_challenger(entry, challenger)
        if entry.action == "rollback" and entry.after is not None:
            self._point(CHAMPION, self._version(entry.after.version))

    def _drop_challenger(self, because: Entry, challenger: Version) -> None:
        # Part of the entry that is open: its own entry would be settled before the rejection that it belongs to.
        self.registry.point(CHALLENGER, None)
        number = self.history.begin(
            self._entry(
                because.action,
                because.who,
                because.why,
                alias=CHALLENGER,
                before=_named(challenger),
                after=None,
            )
        )
        self.history.finish(number, "done", self._now())

    def _hold_at_least(self, hold: Hold, action: Action) -> None:
        """A rollback never shortens a hold that somebody set; who sets one by hand may."""
        there = self.registry.hold(self._now()) if action == "rollback" else None
        if there is not None and (
            there.until is None or (hold.until is not None and there.until >= hold.until)
        ):
            return
        self.registry.set_hold(hold)

    def _point(self, alias: str, version: Version) -> None:
        self.registry.point(alias, version)
        if alias == CHAMPION:
            released.write_pointer(self.store, self.registry.name, version.number, version.release)

    def _version(self, number: str) -> Version:
        version = self.registry.get(number)
        if version is None:
            known = ", ".join(v.number for v in self.registry.versions()[:20]) or "none"
            raise BadSettings(
                f"{self.registry.name} has no version {number!r} that promote made; the newest are {known} (`audiorec history` "
                "shows them)"
            )
        return version

    def _target(self, serving: Version, to: str | None) -> tuple[Version, tuple[str, ...]]:
        """The version to go back to, whole, and what was passed over."""
        if to is not None:
            version = self._version(to)
            unfit = _unfit(version, serving)
            if unfit:
                raise BadSettings(f"version {to} ({version.as_of}) {unfit}; name another one, or none")
            self._verify(version)
            return version, ()
        notes = []
        for version in self.registry.versions():
            if not version.promoted or _unfit(version, serving):
                continue
            try:
                self._verify(version)
            except Corrupt as error:
                notes.append(f"version {version.number} ({version.as_of}) was passed over: {error}")
                continue
            return version, tuple(notes)
        raise BadSettings(
            f"no version is left to go back to from version {serving.number} ({serving.as_of}): an earlier one must have been "
            "promoted, not rejected, and be whole. Register an earlier date (`audiorec backfill`), then name its version "
            "with --to" + "".join(f". {note}" for note in notes)
        )

    def _verify(self, version: Version) -> None:
        """Every file of a version against its hash: to go back to a damaged release would help nobody."""
        bundle = released.Bundle.load(self.store, version.release)
        for manifest in bundle.manifests.values():
            for name in manifest.files:
                self.store.open(manifest, name)

    def _answered(self, request: str) -> RolledBack | None:
        """What the same asking did before."""
        if not request:
            return None
        for recorded in self.history.newest_first():
            entry = recorded.entry
            if entry.request == request and entry.before and entry.after and recorded.outcome == "done":
                return RolledBack(entry.before, entry.after, entry.until, True)
        return None

    def _settle(self) -> list[Entry]:
        """Finish or answer what was left open (returned), and note an alias that was moved outside of us."""
        champion_known = False
        settled = []
        recorded: Recorded | None = None
        for recorded in self.history.newest_first():
            if recorded.outcome is None:
                recorded = Recorded(recorded.number, recorded.entry, self._finish(recorded))
                settled.append(recorded.entry)
            if recorded.entry.alias == CHAMPION and recorded.outcome == "done":
                champion_known = True
                break
        serving = self.registry.alias(CHAMPION)
        known = recorded.entry.after if recorded is not None and champion_known else None
        if _named(serving) != known:
            why = (
                "moved outside of audiorec, in MLflow perhaps"
                if champion_known
                else "as found when the record began"
            )
            entry = self._entry("found", "unknown", why, alias=CHAMPION, before=known, after=_named(serving))
            self.history.finish(self.history.begin(entry), "done", self._now())
        return settled

    def _finish(self, recorded: Recorded) -> Outcome:
        entry = recorded.entry
        outcome: Outcome = "done"
        if entry.action in ("promote", "found"):
            # Not carried out: the killed run is tried again, and the gate judges anew.
            outcome = "done" if _named(self.registry.alias(entry.alias)) == entry.after else "not done"
        else:
            self._carry_out(entry)
        self.history.finish(recorded.number, outcome, self._now())
        return outcome

    def _entry(
        self,
        action: Action,
        who: str,
        why: str,
        *,
        alias: str = "",
        before: VersionRef | None = None,
        after: VersionRef | None = None,
        verdict: str = "",
        until: str | None = None,
        request: str = "",
    ) -> Entry:
        reason = " ".join(why.split())[:2000] or NO_REASON
        return Entry(
            action,
            _stamp(self._now()),
            who or operator(),
            reason,
            alias,
            before,
            after,
            verdict,
            until,
            request,
        )


def operator() -> str:
    """Who is typing: the account and the machine."""
    try:
        account = getpass.getuser()
    except (OSError, KeyError):  # no such account, as in many containers
        account = f"account {os.getuid()}"
    return f"{account}@{socket.gethostname()}"


def _unfit(version: Version, serving: Version) -> str | None:
    """Why a champion cannot be rolled back to a version, or None."""
    if version.number == serving.number:
        return "is the champion itself"
    if version.rejected:
        return "was rejected and is never eligible again"
    if version.as_of > serving.as_of:
        return f"is of a later date than the champion ({serving.as_of}); to go forward is what promote is for"
    if version.tags.get("verdict", "").startswith("refused"):
        return f"was refused by the gate ({version.tags['verdict'][:200]})"
    return None


def _named(version: Version | None) -> VersionRef | None:
    return None if version is None else _ref(version)


def _ref(version: Version) -> VersionRef:
    return VersionRef(version.number, str(version.as_of))


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def main(arguments: list[str] | None = None) -> None:
    """`python -m audiorec.release rollback ...`: what the DAG's form starts; the same as `audiorec rollback`."""
    parser = argparse.ArgumentParser(prog="python -m audiorec.release", description=main.__doc__)
    parser.add_argument("command", choices=("rollback",))
    parser.add_argument("--to", default=None, help="version to go back to (default: the last good one)")
    parser.add_argument("--reason", required=True)
    parser.add_argument("--hold-days", type=float, default=HOLD_DAYS)
    parser.add_argument("--who", default="", help="who asked (default: the account)")
    parser.add_argument("--request", default="", help="the same request is answered once")
    parser.add_argument("--settings", type=Path, default=None)
    given = parser.parse_args(arguments)
    try:
        done = ReleaseControl(load_settings(given.settings)).rollback(
            to=given.to, why=given.reason, who=given.who, hold_days=given.hold_days, request=given.request
        )
    except AudiorecError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    for note in done.notes:
        print(f"warning: {note}", flush=True)
    print(done.line(), flush=True)
    result = {
        "task": "rollback",
        "as_of": done.after.as_of,
        "state": "up_to_date" if done.already else "done",
        "manifest": None,
        "fingerprint": None,
        "verdict": done.line(),
    }
    target = os.environ.get(_RESULT_VARIABLE)
    if target:
        Path(target).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
