"""Data Docs of a run: every suite through one Great Expectations context into one static site."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from expectations.check import Suite, SuiteResult, batches, ephemeral_context, judge, read_results

INDEX = "index.html"
SITE = "run"


def evaluate_with_docs(suites: Sequence[Suite], folder: Path) -> list[SuiteResult]:
    """Run the suites and leave their Data Docs in `folder` (about 4.5 MB, replaced if there).

    The site is built beside its place and moved there, so a reader never sees half of it. It is built once
    at the end: a Checkpoint a suite with UpdateDataDocsAction renders all anew each time (7.6 s for 15).
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
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return results
