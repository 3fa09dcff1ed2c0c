"""Great Expectations suites, one file a table, every threshold with its reason.

`expectations.check` runs suites and turns what fails into words; one module a source table builds that
table's suite; `expectations.graph` and `expectations.embeddings` guard what the chain computes and import
nothing of the tables' suites, so that an edit there makes no training stale. Import the modules, not this.
"""
