"""Suite of an embedding matrix: finite, of the length it should have, not collapsed.

The figures come from numpy, block by block, so a memory-mapped matrix of any size is never held whole.
"""

from __future__ import annotations

import numpy as np

from expectations.check import Check, Failure, Suite, evaluate, raise_or_warn

BLOCK = 65_536
SAMPLE = 2_000
"""Rows behind the effective rank: a matrix of 2,000 x 384 is measured in 1 s on 2 cores."""
UNIT_TOLERANCE = 1e-3
"""float16 storage rounds a norm by up to 5e-4; a forgotten normalisation is off by far more."""
COLLAPSED_COSINE = 0.99
"""All rows within 8 degrees of one direction: a ranking by inner product is then rounding noise."""
NARROW_COSINE = 0.9
"""MiniLM's vectors average 0.46 on film titles, 0.52 on a gift shop's, 0.69 on 'Item 17', 'Item 18', …"""
COLLAPSED_RANK = 1.5
"""The rows lie on a line: titles differ in one number only."""
NARROW_RANK = 4.0
"""MiniLM's 384 dimensions have an effective rank of 54 to 122 on the same three."""
FEW_ROWS = 10
"""Fewer rows are alike by chance."""
MOST_EMPTY = 0.5
"""Half of the rows without a vector: what reads the matrix works without it more often than with it."""


def check_embeddings(name: str, matrix: np.ndarray, unit_norm: bool) -> list[Failure]:
    """Judge a matrix before it is committed.

    Args:
        name: what it holds, for the message.
        matrix: [rows, D], any float type. A row of zeros means "no vector" (a title without text, an artist
            nobody heard) and is left out of norms and spread.
        unit_norm: every other row must have length 1.

    Returns:
        The warnings.

    Raises:
        BadData: a critical check failed, with all of them in words.
    """
    return raise_or_warn(evaluate(suite(name, matrix, unit_norm)))


def suite(name: str, matrix: np.ndarray, unit_norm: bool) -> Suite:
    """The figures of a matrix and the bounds that they must keep."""
    metrics = measure(matrix)
    rows, empty = int(metrics["rows"] or 0), int(metrics["empty_rows"] or 0)
    rebuild = (
        "do not release: run the task again with --force; if it repeats, lower the learning rate "
        "or look at its input"
    )
    checks = [
        Check(
            "DQ-EMBEDDINGS",
            "non_finite_rows",
            "",
            "critical",
            f"{metrics['non_finite_rows']:,} of {rows:,} rows with NaN or inf",
            "finite numbers",
            rebuild,
            "one NaN in an index returns title -1 for every query",
            maximum=0,
        ),
        Check(
            "DQ-EMBEDDINGS",
            "empty_row_share",
            "",
            "warning",
            f"{empty:,} of {rows:,} rows without a vector (no text or no signal)",
            f"at most {100 * MOST_EMPTY:.0f}%",
            "load titles and descriptions (or events); the run goes on by the path without",
            "such rows are told apart by nothing in this matrix",
            maximum=MOST_EMPTY,
        ),
    ]
    if unit_norm:
        checks.append(
            Check(
                "DQ-EMBEDDINGS",
                "largest_norm_error",
                "",
                "critical",
                f"a row whose length is off by {metrics['largest_norm_error']:.3g}",
                f"length 1, to {UNIT_TOLERANCE:g}",
                rebuild,
                "inner product is cosine only for rows of length 1",
                maximum=UNIT_TOLERANCE,
            )
        )
    if rows - empty >= FEW_ROWS and not metrics["non_finite_rows"]:
        cosine, rank = metrics["mean_cosine"] or 0.0, metrics["effective_rank"] or 0.0
        told = f"a mean cosine of {cosine:.3f} between the {rows - empty:,} rows"
        spread = f"an effective rank of {rank:.2f} in {matrix.shape[1]} dimensions"
        weak = "the run goes on; see whether texts are placeholders or training ended early"
        checks += [
            Check(
                "DQ-EMBEDDINGS",
                "mean_cosine",
                "",
                "critical",
                told,
                f"at most {COLLAPSED_COSINE:g}",
                rebuild,
                "rows that all point one way rank nothing",
                maximum=COLLAPSED_COSINE,
            ),
            Check(
                "DQ-EMBEDDINGS",
                "mean_cosine",
                "",
                "warning",
                told,
                f"at most {NARROW_COSINE:g}",
                weak,
                "even titles that are numbers stay below 0.7",
                maximum=NARROW_COSINE,
            ),
            Check(
                "DQ-EMBEDDINGS",
                "effective_rank",
                "",
                "critical",
                spread,
                f"at least {COLLAPSED_RANK:g}",
                rebuild,
                "rows on a line differ in one number",
                minimum=COLLAPSED_RANK,
            ),
            Check(
                "DQ-EMBEDDINGS",
                "effective_rank",
                "",
                "warning",
                spread,
                f"at least {min(NARROW_RANK, matrix.shape[1] / 2):g}",
                weak,
                "sentence vectors have 50 and more",
                minimum=min(NARROW_RANK, matrix.shape[1] / 2),
            ),
        ]
    return Suite(name, metrics, checks)


def measure(matrix: np.ndarray) -> dict[str, float | int | None]:
    """Figures of a matrix [rows, D] in one pass.

    `mean_cosine` is exact: for unit rows x_i, sum over i != j of x_i·x_j = |sum x_i|² - n. `effective_rank`
    is exp(entropy of the normalised squared singular values) of the centred sample (Roy & Vetterli 2007).
    """
    rows, width = matrix.shape
    non_finite = empty = 0
    worst = 0.0
    total = np.zeros(width)
    for start in range(0, rows, BLOCK):
        block = np.asarray(matrix[start : start + BLOCK], np.float64)
        finite = np.isfinite(block).all(axis=1)
        non_finite += int((~finite).sum())
        norms = np.linalg.norm(block[finite], axis=1)
        full = norms > 0
        empty += int((~full).sum())
        if full.any():
            worst = max(worst, float(np.abs(norms[full] - 1).max()))
            total += (block[finite][full] / norms[full, None]).sum(axis=0)
    count = rows - empty - non_finite
    cosine = (float(total @ total) - count) / (count * (count - 1)) if count > 1 else None
    return {
        "rows": rows,
        "non_finite_rows": non_finite,
        "empty_rows": empty,
        "empty_row_share": empty / rows if rows else 1.0,
        "largest_norm_error": worst,
        "mean_cosine": cosine,
        "effective_rank": _effective_rank(matrix) if count > 1 else None,
    }


def _effective_rank(matrix: np.ndarray) -> float:
    chosen = np.unique(np.linspace(0, len(matrix) - 1, min(SAMPLE, len(matrix))).astype(np.int64))
    sample = np.asarray(matrix[chosen], np.float64)
    sample = sample[np.isfinite(sample).all(axis=1)]
    norms = np.linalg.norm(sample, axis=1)
    sample = sample[norms > 0] / norms[norms > 0, None]
    if len(sample) < 2:
        return 0.0
    power = np.linalg.svd(sample - sample.mean(axis=0), compute_uv=False) ** 2
    if power.sum() <= 1e-12:
        return 0.0
    share = power[power > 0] / power.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
