"""HGNN, sampler, towers, losses and metrics: torch and numpy, no files, no clock."""
