"""Suites of checks: run by Great Expectations, told in words that name table, column, counts and remedy.

A check bounds one figure. DuckDB or numpy computes the figures, so that Great Expectations sees one row
however large the table is (measured: 10 M rows through its pandas engine take 2.1 GB); checks on single
rows run on a bounded sample with the columns they need.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from audiorec.errors import BadData

if TYPE_CHECKING:
    import pandas as pd

Severity = Literal["critical", "warning"]
RowKind = Literal["not_null", "unique", "between", "in_set", "matches", "lacks", "length", "columns"]


@dataclass(frozen=True)
class Check:
    """One figure of a suite and the bounds that it must keep (inclusive; None: no bound).

    Attributes:
        code: the runbook, `docs/runbooks/CODE.md`.
        metric: name of the figure in the suite's metrics.
        column: the source column that the figure is about.
        found, expected, remedy: the sentence parts shown when the bound is broken.
        why: the reason for the threshold.
    """

    code: str
    metric: str
    column: str
    severity: Severity
    found: str
    expected: str
    remedy: str
    why: str
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class RowCheck:
    """A check on each row of the suite's sample; `mostly` is the share of rows that must keep it."""

    code: str
    column: str
    kind: RowKind
    severity: Severity
    expected: str
    remedy: str
    why: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mostly: float = 1.0


@dataclass(frozen=True)
class Suite:
    """The checks of one table (or graph, or matrix), with the figures and rows they look at."""

    name: str
    metrics: Mapping[str, float | int | None]
    checks: Sequence[Check]
    rows: pd.DataFrame | None = None
    row_checks: Sequence[RowCheck] = ()
    notices: Sequence[str] = ()


@dataclass(frozen=True)
class Failure:
    """A broken expectation in words; `line()` is what a person reads in the log and in the alert."""

    code: str
    severity: Severity
    table: str
    column: str
    metric: str
    value: float | None
    found: str
    expected: str
    remedy: str

    def line(self) -> str:
        where = f"{self.table}.{self.column}" if self.column else self.table
        return f"{self.code} {where}: found {self.found}; expected {self.expected}. Remedy: {self.remedy}"

    __str__ = line


@dataclass(frozen=True)
class SuiteResult:
    """What one suite found; `json` is determined by its inputs (no times, no run ids)."""

    name: str
    expectations: int
    critical: list[Failure]
    warnings: list[Failure]
    json: dict[str, Any]

    @property
    def success(self) -> bool:
        return not self.critical


def evaluate(suite: Suite) -> SuiteResult:
    """Run one suite in an ephemeral Great Expectations context, without Data Docs."""
    source = ephemeral_context().data_sources.add_pandas("in_memory")
    broken: list[bool] = []
    counts: list[tuple[int, int] | None] = []
    for name, frame, expectations in batches(suite):
        definition = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        batch = definition.get_batch({"dataframe": frame})
        result = batch.validate(_gx().ExpectationSuite(name=name, expectations=expectations))
        read_results(result, broken, counts)
    return judge(suite, broken, counts)


def raise_or_warn(result: SuiteResult) -> list[Failure]:
    """The warnings of a result. Raises BadData, with every critical failure in words, if there is one."""
    if result.critical:
        lines = "\n".join(f"  {failure.line()}" for failure in result.critical)
        raise BadData(f"{result.name} failed {len(result.critical)} critical check(s):\n{lines}")
    return result.warnings


def _gx() -> Any:
    """Great Expectations, imported when first needed (3 s), with its telemetry off."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    return great_expectations


def ephemeral_context() -> Any:
    """A context that lives in memory: a file context would have concurrent runs rewrite the same JSON."""
    gx = _gx()
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    config = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    return gx.get_context(mode="ephemeral", project_config=config)


def batches(suite: Suite) -> list[tuple[str, pd.DataFrame, list[Any]]]:
    """The suite as Great Expectations sees it: a one-row frame of figures and, if any, the sampled rows."""
    import pandas as pd

    found: list[tuple[str, pd.DataFrame, list[Any]]] = []
    if suite.checks:
        values = {check.metric: _number(suite.metrics[check.metric]) for check in suite.checks}
        bounds = [_bound(check, values[check.metric]) for check in suite.checks]
        found.append((suite.name, pd.DataFrame([values], dtype="float64"), bounds))
    if suite.row_checks and suite.rows is not None:
        found.append((f"{suite.name}_rows", suite.rows, [_row(check) for check in suite.row_checks]))
    return found


def _number(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def _bound(check: Check, value: float) -> Any:
    _gx()
    import great_expectations.expectations as gxe

    common = {
        "column": check.metric,
        "severity": check.severity,
        "description": f"{check.column or check.metric}: {check.expected} ({check.why})",
    }
    if math.isnan(value):
        # A bound takes NaN for a missing value and passes; a figure that could not be had must fail.
        return gxe.ExpectColumnValuesToNotBeNull(**common)
    return gxe.ExpectColumnValuesToBeBetween(min_value=check.minimum, max_value=check.maximum, **common)


def _row(check: RowCheck) -> Any:
    _gx()
    import great_expectations.expectations as gxe

    classes = {
        "not_null": gxe.ExpectColumnValuesToNotBeNull,
        "unique": gxe.ExpectColumnValuesToBeUnique,
        "between": gxe.ExpectColumnValuesToBeBetween,
        "in_set": gxe.ExpectColumnValuesToBeInSet,
        "matches": gxe.ExpectColumnValuesToMatchRegex,
        "lacks": gxe.ExpectColumnValuesToNotMatchRegex,
        "length": gxe.ExpectColumnValueLengthsToBeBetween,
    }
    about = f"{check.column}: " if check.column else ""
    common = {"severity": check.severity, "description": f"{about}{check.expected} ({check.why})"}
    if check.kind == "columns":
        return gxe.ExpectTableColumnsToMatchSet(**common, **check.arguments)
    return classes[check.kind](column=check.column, mostly=check.mostly, **common, **check.arguments)


def read_results(result: Any, broken: list[bool], counts: list[tuple[int, int] | None]) -> None:
    """Append, an expectation, whether it broke and on how many of how many rows.

    Raises:
        RuntimeError: an expectation could not be evaluated, which is a fault of the suite, not of the data.
    """
    for one in result.results:
        info = one.exception_info or {}
        nested = [info] if "raised_exception" in info else [v for v in info.values() if isinstance(v, dict)]
        raised = next((n for n in nested if n.get("raised_exception")), None)
        if raised:
            kind = one.expectation_config.type
            raise RuntimeError(
                f"expectation {kind} could not be evaluated: {raised.get('exception_message')}"
            )
        broken.append(not one.success)
        details = one.result or {}
        seen = details.get("element_count")
        counts.append(None if seen is None else (int(details.get("unexpected_count") or 0), int(seen)))


def judge(suite: Suite, broken: Sequence[bool], counts: Sequence[tuple[int, int] | None]) -> SuiteResult:
    """Turn results, in the order of `batches`, into failures in words."""
    failures: list[Failure] = []
    listed: list[dict[str, Any]] = []
    for check, failed in zip(suite.checks, broken[: len(suite.checks)], strict=True):
        value = _number(suite.metrics[check.metric])
        shown = None if math.isnan(value) else round(value, 6)
        listed.append({**asdict(check), "value": shown, "success": not failed})
        if failed:
            found = check.found if shown is not None else f"no value of {check.metric}"
            failures.append(
                Failure(
                    check.code,
                    check.severity,
                    suite.name,
                    check.column,
                    check.metric,
                    shown,
                    found,
                    check.expected,
                    check.remedy,
                )
            )
    row_checks = suite.row_checks if suite.rows is not None else ()
    pairs = zip(broken[len(suite.checks) :], counts[len(suite.checks) :], strict=True)
    for row_check, (failed, count) in zip(row_checks, pairs, strict=True):
        bad, seen = count or (0, len(suite.rows) if suite.rows is not None else 0)
        listed.append({**asdict(row_check), "metric": row_check.kind, "value": bad, "success": not failed})
        if failed:
            found = f"{bad:,} of {seen:,} sampled rows that are not so" if count else "other columns"
            failures.append(
                Failure(
                    row_check.code,
                    row_check.severity,
                    suite.name,
                    row_check.column,
                    row_check.kind,
                    bad,
                    found,
                    row_check.expected,
                    row_check.remedy,
                )
            )
    critical = [failure for failure in failures if failure.severity == "critical"]
    worse = {(failure.code, failure.column, failure.metric) for failure in critical}
    warnings = [
        failure
        for failure in failures
        if failure.severity == "warning" and (failure.code, failure.column, failure.metric) not in worse
    ]
    json = {
        "success": not critical,
        "metrics": {
            name: None if value is None else round(float(value), 6)
            for name, value in sorted(suite.metrics.items())
        },
        "checks": listed,
        "notices": list(suite.notices),
    }
    return SuiteResult(suite.name, len(listed), critical, warnings, json)
