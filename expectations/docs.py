"""Data Docs of a run: every suite through one Great Expectations context into one static site.

Great Expectations' own pages fetch styles, scripts and a logo from six hosts, and its index is empty without
them. Ours have to be read where no such host is reached, and should tell nobody that they are: the pages are
stripped of what they fetch and given a style of their own, and the index is the run's report in full.
"""

from __future__ import annotations

import html
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from expectations.check import Suite, SuiteResult, batches, ephemeral_context, judge, read_results

INDEX = "index.html"
SITE = "run"

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1f23; background: #fff;
  margin: 2rem auto; max-width: 76rem; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } a { color: #0b5cad; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #d8dee4; }
th { background: #f2f4f7; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.pass { color: #116329; } .warning { color: #7d4e00; } .critical { color: #a40e26; font-weight: 600; }
.text-success::before { content: "passed"; color: #116329; font-style: normal; }
.text-danger::before, .text-warning::before { content: "failed"; color: #a40e26; font-style: normal; }
h3, h4, h5, h6 { font-size: 1rem; margin: .4rem 0; }
.breadcrumb { list-style: none; padding: 0; } .breadcrumb li { display: inline; }
.breadcrumb li + li::before { content: " / "; }
.alert { background: #f2f4f7; padding: .4rem .6rem; } .verdict { font-size: 1.15rem; }
/* filters that need a script */ .card-body, .card-header { display: none; }
@media (prefers-color-scheme: dark) {
  body { color: #e6edf3; background: #0d1117; } a { color: #6cb0ff; }
  th, .alert { background: #161b22; } th, td { border-color: #30363d; }
  .pass, .text-success::before { color: #56d364; }
  .warning { color: #e3b341; } .critical, .text-danger::before { color: #ff7b72; } }
"""

_FETCHED = re.compile(
    r"<link\b[^>]*>|<script\b[^>]*>.*?</script>|<style\b[^>]*>.*?</style>|<footer\b.*?</footer>|<img\b[^>]*>",
    re.DOTALL | re.IGNORECASE,
)
_DEAD_LINK = re.compile(r"<a [^>]*expectations/[^>]*>(.*?)</a>", re.DOTALL)
_NEEDS_SCRIPT = re.compile(r'<a [^>]*data-toggle="collapse".*?</a>', re.DOTALL)


def evaluate_with_docs(
    suites: Sequence[Suite], folder: Path, report_of: Callable[[list[SuiteResult]], Mapping[str, Any]]
) -> list[SuiteResult]:
    """Run the suites and leave their Data Docs in `folder` (replaced if there).

    The site is built beside its place and moved there, so a reader never sees half of it. It is built once
    at the end: a Checkpoint a suite with UpdateDataDocsAction renders all anew each time (7.6 s for 15).

    Args:
        suites: what to run.
        folder: where the site goes; `index.html` is its first page.
        report_of: the run's report, made from the results, for the first page.
    """
    import great_expectations as gx

    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    context = ephemeral_context()
    context.add_data_docs_site(
        SITE,
        {
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            # The pages of results say all that the pages of suites would.
            "site_section_builders": {"expectations": "None", "profiling": "None"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(building)},
        },
    )
    source = context.data_sources.add_pandas("audiorec")
    results = []
    try:
        for suite in suites:
            broken: list[bool] = []
            counts: list[tuple[int, int] | None] = []
            for name, frame, expectations in batches(suite):
                definition = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
                validation = context.validation_definitions.add(
                    gx.ValidationDefinition(
                        name=name,
                        data=definition,
                        suite=context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations)),
                    )
                )
                # No examples of values: they would put ids of users on a page.
                result = validation.run(
                    batch_parameters={"dataframe": frame},
                    result_format={"result_format": "BASIC", "partial_unexpected_count": 0},
                )
                read_results(result, broken, counts)
            results.append(judge(suite, broken, counts))
        context.build_data_docs(site_names=[SITE])
        _make_self_contained(building)
        (building / INDEX).write_text(index_page(report_of(results), _pages(building)), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return results


def _make_self_contained(site: Path) -> None:
    """Take out of every page what it would fetch, and the files that only those parts used."""
    shutil.rmtree(site / "static", ignore_errors=True)
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        text = _NEEDS_SCRIPT.sub("", _DEAD_LINK.sub(r"\1", _FETCHED.sub("", text)))
        page.write_text(text.replace("</head>", f"<style>{STYLE}</style></head>", 1), encoding="utf-8")


def _pages(site: Path) -> dict[str, str]:
    """Address of Great Expectations' page of each batch, by the batch's name."""
    return {
        page.relative_to(site).parts[1]: page.relative_to(site).as_posix()
        for page in sorted((site / "validations").rglob("*.html"))
    }


def index_page(report: Mapping[str, Any], pages: Mapping[str, str]) -> str:
    """The report of a run as one page: verdict, failures, days, rows set aside, checks with reasons."""
    parts = [
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>Data quality {_text(report['as_of'])}</title><style>{STYLE}</style></head><body>",
        f"<h1>Data quality of {_text(report['as_of'])}</h1>",
        f"<p class='verdict {_class_of(report)}'>{_text(report['verdict'])}</p>",
    ]
    for kind in ("critical", "warnings"):
        if report[kind]:
            items = "".join(f"<li>{_text(line)}</li>" for line in report[kind])
            parts.append(f"<h2>{kind.capitalize()}</h2><ul class='{kind.removesuffix('s')}'>{items}</ul>")
    days = report["rows_by_day"]
    if days:
        tables = list(next(iter(days.values())))
        rows = [[day, *(f"{found[table]:,}" for table in tables)] for day, found in days.items()]
        parts.append(
            "<h2>Rows that count</h2>" + _table(["day", *tables], rows, numbers=range(1, 1 + len(tables)))
        )
    if report["quarantined"]:
        names = ["table", "column", "reason", "kind", "rows", "rows_of_day", "remedy"]
        rows = [
            [f"{r[n]:,}" if isinstance(r[n], int) else r[n] for n in names] for r in report["quarantined"]
        ]
        parts.append(
            "<h2>Rows set aside</h2>" + _table([n.replace("_", " ") for n in names], rows, numbers=(4, 5))
        )
    for name, suite in report["suites"].items():
        links = [
            f"<a href='{html.escape(pages[batch], quote=True)}'>{word}</a>"
            for batch, word in ((name, "figures"), (f"{name}_rows", "rows"))
            if batch in pages
        ]
        parts.append(f"<h2>{_text(name)}</h2><p>Great Expectations' pages: {', '.join(links)}</p>")
        rows = [_check_row(check) for check in suite["checks"]]
        headings = ["result", "severity", "column", "figure", "value", "expected", "because"]
        parts.append(_table(headings, rows, numbers=(4,)))
    return "\n".join([*parts, "</body></html>\n"])


def _check_row(check: Mapping[str, Any]) -> list[str]:
    value = check["value"]
    shown = "" if value is None else f"{value:,.6g}"
    result = "passed" if check["success"] else f"failed: {check['code']}"
    return [
        result,
        check["severity"],
        check["column"],
        check["metric"],
        shown,
        check["expected"],
        check["why"],
    ]


def _class_of(report: Mapping[str, Any]) -> str:
    return "critical" if report["critical"] else "warning" if report["warnings"] else "pass"


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]], numbers: Iterable[int] = ()) -> str:
    right = set(numbers)

    def cells(tag: str, values: Sequence[object]) -> str:
        found = []
        for number, value in enumerate(values):
            kind = " class='number'" if number in right else ""
            text = _text(value)
            if tag == "td" and number == 0 and text in ("passed",):
                kind = " class='pass'"
            elif tag == "td" and number == 0 and text.startswith("failed"):
                kind = f" class='{_text(values[1])}'"
            found.append(f"<{tag}{kind}>{text}</{tag}>")
        return "<tr>" + "".join(found) + "</tr>"

    return f"<table>{cells('th', headings)}{''.join(cells('td', row) for row in rows)}</table>"
