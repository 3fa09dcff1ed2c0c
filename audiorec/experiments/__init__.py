"""Judging: the evaluation protocol (design 8), used by `evaluate`, the gate and every experiment."""
