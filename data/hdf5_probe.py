"""Look at HDF5 files in a process of its own, which may crash: paths in, one line for each out.

Needs h5py alone, so that the process starts quickly.
"""

from __future__ import annotations

import json
import sys

import h5py

#: Filters of HDF5 that check what they unpack: values packed by these or by none cannot crash a reader.
_SAFE_FILTERS = frozenset({h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32})
_ROWS_BYTES = 64 << 20


def probe(path: str, most: int | None = None) -> None:
    """Read every attribute of a file, the index of every dataset, and the values that could crash a reader.

    Plain numbers are not read, packed or not: damage in them is an error or another number, never a crash.
    Neither is what claims more than `most` bytes, which no reader reads.
    """
    with h5py.File(path) as file:
        _read_attributes(file)
        file.visititems(lambda _, item: _read(item, most))


def _read(item: h5py.Group | h5py.Dataset, most: int | None) -> None:
    _read_attributes(item)
    if not isinstance(item, h5py.Dataset) or (most is not None and item.nbytes > most):
        return
    if item.shape is None or item.ndim == 0:
        item[()]
        return
    if item.chunks is not None:
        item.id.chunk_iter(lambda chunk: None)
    if _is_plain(item):
        # The first and the last value: where the data lie in the file, and whether all of them can.
        if item.size:
            item[(0,) * item.ndim]
            item[tuple(length - 1 for length in item.shape)]
        return
    rows = max(1, _ROWS_BYTES * len(item) // max(1, item.nbytes))
    for start in range(0, len(item), rows):
        item[start : start + rows]


def _is_plain(item: h5py.Dataset) -> bool:
    """Whether a dataset holds numbers or text of a fixed length, and its filters check what they unpack."""
    packing = item.id.get_create_plist()
    filters = {packing.get_filter(i)[0] for i in range(packing.get_nfilters())}
    return not item.dtype.hasobject and item.dtype.names is None and filters <= _SAFE_FILTERS


def _read_attributes(item: h5py.Group | h5py.Dataset) -> None:
    for name in item.attrs:
        item.attrs[name]


def main() -> None:
    """Answer every line, a path and the most bytes as JSON, by one: empty, or what libhdf5 says of it."""
    for line in sys.stdin:
        try:
            probe(*json.loads(line))
            said = ""
        except Exception as error:  # noqa: BLE001 - the reader says what is wrong with it
            said = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps(said) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
