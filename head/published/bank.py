"""Training spots that a head refers to: whose they are, which are nearest to a spot, and their average."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmap_st.head.networks import Part, TrainingPart
from mmap_st.prototypes import import_faiss

#: Training spots that are kept, taken evenly where there are more: they are saved with the head.
MOST_SPOTS = 20_000

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]


def kept_spots(train: Sequence[TrainingPart], most: int = MOST_SPOTS) -> list[Numbers]:
    """Spots with a target of each part, as positions in it; every n-th where there are more than `most`."""
    measured = [np.flatnonzero(np.isfinite(training.target).any(axis=1)) for training in train]
    ends = np.cumsum([len(positions) for positions in measured])
    step = max(1, -(-int(ends[-1]) // most))
    # Counted on from part to part, so that small ones do not keep more than their share.
    return [
        positions[-(end - len(positions)) % step :: step]
        for positions, end in zip(measured, ends, strict=True)
    ]


def owners(part: Part) -> Numbers:
    """(k, 3) int64 keys of the patient, the slide and the spot that each spot of a part is of.

    A slide of no known patient is a patient of its own.
    """
    slide = part.slide
    patient = _key("slide", slide.name) if slide.patient is None else _key("patient", slide.patient)
    of_slide = _key("slide", slide.name)
    return np.array(
        [(patient, of_slide, _key("spot", slide.name, slide.ids[row])) for row in part.rows], np.int64
    )


def nearest(queries: Array, keys: Array, count: int) -> Numbers:
    """(n, min(count, b)) numbers of the `keys` (b, c) nearest to each query (n, c), nearest first."""
    index = import_faiss().IndexFlatL2(keys.shape[1])
    index.add(np.ascontiguousarray(keys))
    found: Numbers = index.search(np.ascontiguousarray(queries), min(count, len(keys)))[1]
    return found


def nearest_of_others(
    queries: Array, query_owners: Numbers, keys: Array, key_owners: Numbers, count: int
) -> Numbers:
    """Nearest keys that are of another patient; where there is one patient, of another slide.

    Where there is only one slide, any of its spots but the query itself.

    Parameters
    ----------
    queries, keys
        (n, c) and (b, c) float32.
    query_owners, key_owners
        Of `owners`; all queries are of one slide.
    count
        How many to find, at most.

    Returns
    -------
    (n, at most `count`) numbers of keys, nearest first.
    """
    for kind in (0, 1):
        others = np.flatnonzero(key_owners[:, kind] != query_owners[0, kind])
        if len(others):
            return others[nearest(queries, keys[others], count)]
    found = nearest(queries, keys, count + 1)
    itself = key_owners[found, 2] == query_owners[:, 2:]
    # What is itself comes last, and is cut off.
    order = np.argsort(itself, axis=1, kind="stable")[:, : min(count, len(keys) - 1)]
    return np.take_along_axis(found, order, axis=1)


def average(values: Array, found: Numbers) -> Array:
    """(n, r) mean of those `found` (n, k) of the `values` (b, r) that are not NaN; 0 where all are."""
    n, k = found.shape
    ones = np.ones(n * k, np.float32)
    chosen = sparse.csr_array((ones, found.ravel(), np.arange(n + 1) * k), shape=(n, len(values)))
    defined = np.isfinite(values)
    if defined.all():
        total, count = chosen @ values, np.float32(max(k, 1))
    else:
        total = chosen @ np.where(defined, values, np.float32(0))
        count = np.maximum(chosen @ defined.astype(np.float32), 1)
    mean: Array = total / count
    return mean


def _key(*names: str) -> int:
    """A number that stands for names: tensors hold no text."""
    text = "\0".join(names).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)
