"""Read a whole HDF5 file and keep nothing: run in a process of its own, which may crash.

Needs h5py alone, so that the process starts quickly.
"""

from __future__ import annotations

import sys

import h5py

_ROWS_BYTES = 64 << 20


def probe(path: str) -> None:
    """Read every attribute and every value of a file."""
    with h5py.File(path) as file:
        _read_attributes(file)
        file.visititems(_read)


def _read(_: str, item: h5py.Group | h5py.Dataset) -> None:
    _read_attributes(item)
    if not isinstance(item, h5py.Dataset):
        return
    if item.shape is None or item.ndim == 0:
        item[()]
        return
    rows = max(1, _ROWS_BYTES * len(item) // max(1, item.nbytes))
    for start in range(0, len(item), rows):
        item[start : start + rows]


def _read_attributes(item: h5py.Group | h5py.Dataset) -> None:
    for name in item.attrs:
        item.attrs[name]


if __name__ == "__main__":
    probe(sys.argv[1])
