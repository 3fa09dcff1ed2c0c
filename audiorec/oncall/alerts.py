"""What an alert says. One alert is one thing that a person should know, with what to click."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["page", "ticket", "info"]
Status = Literal["firing", "recovered"]

USER_EFFECT = {
    "AF-DOWN": "None yet; without Airflow no new release is made and recommendations grow stale.",
    "RUN-DEAD": "Recommendations stay as they are until the run is mended.",
    "SERVICE-DOWN": "Nobody gets recommendations until it answers again.",
    "STALE": "Recommendations rest on old data: what people did since then plays no part.",
    "DATA-LATE": "Recommendations stay as they are until the day's tables arrive.",
    "DQ-CRITICAL": "Recommendations stay as they are: nothing is trained on these rows.",
    "RECOVERED": "None: the day's run ended well.",
}
NO_EFFECT = "Recommendations stay as they are: the released version goes on serving."

_CREDENTIALS = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_SECRET_PAIR = re.compile(r"(?i)\b(\w*(?:password|passwd|secret|token|api_?key)\w*)(\s*[=:]\s*)[^\s,;&]+")


def redact(text: str) -> str:
    """Take passwords out of addresses and `name=value` pairs; an alert leaves the machine."""
    return _SECRET_PAIR.sub(r"\1\2***", _CREDENTIALS.sub("***", text))


@dataclass(frozen=True)
class Alert:
    """The alert contract. It holds no user id: tasks print counts, never users.

    `data_date` is the date of the data, not of the run; `dedup_key` is the code and that date, so that a sink
    shows a failure of one day once, however many tries and runs it takes. What has neither date nor run names
    what it is `about`.
    """

    code: str
    summary: str
    severity: Severity = "page"
    status: Status = "firing"
    dag_id: str = ""
    task_id: str | None = None
    run_id: str = ""
    run_type: str = ""
    try_number: int | None = None
    clear_number: int = 0
    data_date: str | None = None
    about: str = ""
    user_effect: str = NO_EFFECT
    error: str | None = None
    signal_name: str | None = None
    peak_mb: int | None = None
    limit_mb: int | None = None
    last_lines: tuple[str, ...] = ()
    champion: str | None = None
    advice: str = ""
    links: Mapping[str, str] = field(default_factory=dict)

    @property
    def dedup_key(self) -> str:
        return f"{self.code}:{self.data_date or self.run_id or self.about}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, secrets taken out."""
        plain = {name: value for name, value in asdict(self).items() if value not in (None, "", (), {})}
        plain["dedup_key"] = self.dedup_key
        plain["last_lines"] = [redact(line) for line in self.last_lines]
        for name in ("summary", "error", "advice"):
            if name in plain:
                plain[name] = redact(plain[name])
        # Chat webhooks show this one and ignore the rest.
        plain["text"] = redact(self.text())
        return plain

    def text(self) -> str:
        """The alert as a person reads it."""
        run = f"{self.run_type} run {self.run_id}" if self.run_id else "no run"
        where = ".".join(part for part in (self.dag_id, self.task_id) if part)
        lines = [
            f"[{self.severity}] [{self.code}] {self.summary}"
            + (" (recovered)" * (self.status == "recovered")),
            f"data of {self.data_date or 'unknown'}; {where}; {run}"
            + (f", try {self.try_number}" if self.try_number else ""),
            f"Users: {self.user_effect}",
        ]
        if self.champion:
            lines.append(f"Serving: {self.champion}")
        if self.advice:
            lines.append(f"What to do: {self.advice}")
        lines += [f"{name}: {address}" for name, address in self.links.items()]
        return "\n".join(lines)
