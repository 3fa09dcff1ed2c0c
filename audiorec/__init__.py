"""Shared code of the 2T-HGNN audiobook recommender: settings, store, launcher, release and CLI."""

__version__ = "0.1.0"
