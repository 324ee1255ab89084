"""What the values of a count table are: signs that they were normalised, and what that means for targets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

_RAW = "give raw transcript counts"
_TARGETS = "targets are the logarithm of counts per 10,000, which only raw counts give"
_AS_THEY_ARE = f"{_RAW}, or give --values lognorm to use log-normalised values as targets unchanged"
_FEWEST_SPOTS = 10
_BLOCK = 1 << 22
_SAME_LIBRARY = 0.005
# log1p of counts per million of a spot whose counts are all of one gene is 13.8.
_LARGEST_LOG = 20.0


def first_that_is_no_count(values: sparse.csr_array) -> float | None:
    """The first finite value that is not a whole number of zero or more, or None."""
    for part in blocks_of(values.data):
        finite = part[np.isfinite(part)]
        wrong = (finite != np.floor(finite)) | (finite < 0)
        if wrong.any():
            return float(finite[np.argmax(wrong)])
    return None


def blocks_of(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """The values block by block: what is computed of all at once takes as much memory again, and more."""
    for start in range(0, len(values), _BLOCK):
        yield values[start : start + _BLOCK]


def what_they_are(values: sparse.csr_array, kind: str) -> str:
    """What values that are no counts likely are, and what to do; `kind` is what they should be."""
    if (values.data < 0).any():
        scaled = "values below zero are of scaled or centred tables (z-scores), which give no targets"
        return f"{scaled}; {_RAW}" if kind == "counts" else f"{scaled}; {_RAW}, or log-normalised values"
    return f"fractions are of normalised tables, and {_TARGETS}; {_AS_THEY_ARE}"


def notes_on_values(values: sparse.csr_array, kind: str) -> tuple[str, ...]:
    """Signs that values are not what they pass for."""
    if kind != "counts":
        largest = float(values.data.max(initial=0.0))
        if largest <= _LARGEST_LOG:
            return ()
        return (
            f"values go up to {largest:g}, and log-normalised ones stay below {_LARGEST_LOG:g}: no logarithm"
            " was taken of these, and targets are the values unchanged",
        )
    library = np.asarray(values.sum(axis=1), dtype=np.float64).ravel()
    library = library[library > 0]
    if len(library) < _FEWEST_SPOTS or np.ptp(library) > _SAME_LIBRARY * library.mean():
        return ()
    return (
        f"all spots have the same sum ({library.mean():.6g}), as after scaling to a library size and"
        f" rounding: {_TARGETS}; {_RAW}",
    )
