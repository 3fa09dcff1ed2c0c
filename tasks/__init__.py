"""The tasks of the chain, one verb a file: `run(settings, inputs, out)` and `python -m tasks.NAME`."""
