"""Training spots that heads refer to: which are stored, whose they are, and which are nearest to a spot."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mmap_st.head.networks import SpotBlock, TrainingBlock
from mmap_st.prototypes import import_faiss

#: Training spots that are saved with a head, at most; larger sets are subsampled evenly.
MAX_SPOTS = 20_000

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]


def reference_rows(train: Sequence[TrainingBlock], limit: int = MAX_SPOTS) -> list[Numbers]:
    """Positions of the spots with a target in each block; every n-th where there are more than `limit`."""
    measured = [np.flatnonzero(np.isfinite(training.target).any(axis=1)) for training in train]
    ends = np.cumsum([len(positions) for positions in measured])
    step = max(1, -(-int(ends[-1]) // limit))
    # Counting continues from block to block, so that small ones do not get more than their share.
    return [
        positions[-(end - len(positions)) % step :: step]
        for positions, end in zip(measured, ends, strict=True)
    ]


def owner_keys(block: SpotBlock) -> Numbers:
    """(k, 3) int64 keys of the patient, the slide and the id of each spot of a block.

    A slide whose patient is not known counts as a patient of its own.
    """
    slide = block.slide
    patient = _key("slide", slide.name) if slide.patient is None else _key("patient", slide.patient)
    of_slide = _key("slide", slide.name)
    return np.array(
        [(patient, of_slide, _key("spot", slide.name, slide.ids[row])) for row in block.rows], np.int64
    )


def nearest(queries: Array, keys: Array, count: int) -> Numbers:
    """(n, min(count, b)) int64 indices of the `keys` (b, c) nearest to each query (n, c), nearest first."""
    index = import_faiss().IndexFlatL2(keys.shape[1])
    index.add(np.ascontiguousarray(keys))
    found: Numbers = index.search(np.ascontiguousarray(queries), min(count, len(keys)))[1]
    return found


def nearest_of_others(
    queries: Array, query_owners: Numbers, keys: Array, key_owners: Numbers, count: int
) -> Numbers:
    """Find the nearest keys of other patients; of other slides where all keys are of the query's patient.

    Where all keys are of the query's slide, any spot except the query itself can be found.

    Parameters
    ----------
    queries, keys
        (n, c) and (b, c) float32.
    query_owners, key_owners
        See `owner_keys`; all queries are of one slide.
    count
        Largest number of keys to find for each query.

    Returns
    -------
    (n, at most `count`) int64 indices of keys, nearest first.
    """
    for kind in (0, 1):
        others = np.flatnonzero(key_owners[:, kind] != query_owners[0, kind])
        if len(others):
            return others[nearest(queries, keys[others], count)]
    found = nearest(queries, keys, count + 1)
    itself = key_owners[found, 2] == query_owners[:, 2:]
    # The query itself is moved to the end, and cut off.
    order = np.argsort(itself, axis=1, kind="stable")[:, : min(count, len(keys) - 1)]
    return np.take_along_axis(found, order, axis=1)


def average(values: Array, found: Numbers) -> Array:
    """(n, r) float32 mean of the `values` (b, r) at indices `found` (n, k); NaN is left out, 0 if all are."""
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
    """Hash names to an integer, since tensors cannot hold text."""
    text = "\0".join(names).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)
