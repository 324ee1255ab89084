"""Files of embeddings made elsewhere: .npy, and the .h5 of TRIDENT, CLAM and HEST-Benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import open_hdf5, some
from mmap_st.data.tables import refuse_large
from mmap_st.errors import FeaturesError, first_line
from mmap_st.files import sha256_of_file

#: Ends of the names of files that `read_features` understands.
FEATURE_SUFFIXES = (".npy", ".h5", ".hdf5")

# TRIDENT and CLAM say `features`, HEST-Benchmark `embeddings`; HEST's own patches say `barcode`.
_EMBEDDINGS = ("features", "embeddings")
_IDS = ("barcodes", "barcode", "spot_ids", "ids", "obs_names")
_COORDS = "coords"


@dataclass(frozen=True)
class Features:
    """What a file of embeddings holds.

    Attributes
    ----------
    path
        The file.
    embedding
        (n, d) of the file's own floating-point type.
    ids
        (n,) names of its rows; None where it has none.
    coords
        (n, 2) float64, x and y in level-0 pixels, corner or centre; None where it has none.
    patch_px
        Side of its patches in level-0 pixels; None where it does not say.
    shrink
        Level-0 pixels a pixel of its patches; None where it does not say.
    """

    path: Path
    embedding: NDArray[np.floating[Any]]
    ids: tuple[str, ...] | None = None
    coords: NDArray[np.float64] | None = None
    patch_px: float | None = None
    shrink: float | None = None

    def __len__(self) -> int:
        return len(self.embedding)

    @property
    def width(self) -> int:
        """Length d of an embedding."""
        return int(self.embedding.shape[1])

    @property
    def precision(self) -> str:
        """Type of its numbers, such as ``float16``."""
        return self.embedding.dtype.newbyteorder("=").name

    def sha256(self) -> str:
        """Hex sha256 of the whole file."""
        return sha256_of_file(self.path)


def read_features(path: Path) -> Features:
    """Read a file of embeddings.

    Raises
    ------
    FeaturesError
        If it cannot be read, or does not hold one row of floating-point numbers a spot.
    """
    if not path.is_file():
        raise FeaturesError(f"{path} does not exist; correct the path.")
    if path.suffix.lower() == ".npy":
        return _read_npy(path)
    if path.suffix.lower() in FEATURE_SUFFIXES:
        return _read_h5(path)
    raise FeaturesError(f"{path} is of no kind that can be imported; give {some(FEATURE_SUFFIXES)}.")


def _read_npy(path: Path) -> Features:
    try:
        # Mapped: nothing is taken for what its first line claims, and not for more than the file has.
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise FeaturesError(
            f"{path} cannot be read as .npy ({first_line(error)}); write it with numpy.save."
        ) from error
    if not isinstance(array, np.ndarray):
        raise FeaturesError(f"{path} is an archive of several arrays; write one array with numpy.save.")
    refuse_large(path, array.nbytes, "its array has", FeaturesError, arrays=True)
    return Features(path, np.array(_rows(array, path, "its array")))


def _read_h5(path: Path) -> Features:
    import h5py

    try:
        with open_hdf5(path) as file:
            arrays = {name: file[name] for name in file if isinstance(file.get(name), h5py.Dataset)}
            present = [name for name in _EMBEDDINGS if name in arrays]
            if len(present) != 1:
                has = some(sorted(file), 6) or "nothing"
                raise FeaturesError(
                    f"{path} should hold one of the datasets {' and '.join(_EMBEDDINGS)}; it holds {has}."
                )
            size = sum(
                int(array.nbytes) for name, array in arrays.items() if name in (*present, *_IDS, _COORDS)
            )
            refuse_large(path, size, "its arrays have", FeaturesError, arrays=True)
            embedding = _rows(arrays[present[0]][()], path, present[0])
            named = next((arrays[name] for name in _IDS if name in arrays), None)
            ids = None if named is None else _ids(named[()], len(embedding), path)
            _refuse_unknown_rows(path, arrays, present[0], len(embedding))
            coords = patch = shrink = None
            if _COORDS in arrays:
                coords = _coords(arrays[_COORDS][()], len(embedding), path)
                attributes = {**arrays[present[0]].attrs, **arrays[_COORDS].attrs}
                patch, side = patch_level0(attributes), _number(attributes, "patch_size")
                shrink = None if patch is None or side is None else patch / side
    except OSError as error:
        raise FeaturesError(f"{path} cannot be read as HDF5 ({first_line(error)}); copy it again.") from error
    return Features(path, embedding, ids, coords, patch, shrink)


def _refuse_unknown_rows(path: Path, arrays: Mapping[str, Any], embedding: str, n: int) -> None:
    """Rows go by order only where nothing in a file could say whose they are."""
    if any(name in arrays for name in (*_IDS, _COORDS)):
        return
    others = [name for name, array in arrays.items() if name != embedding and n in array.shape]
    if others:
        raise FeaturesError(
            f"{path} says whose its rows are under a name that is not known ({some(others)}); name ids"
            f" {_IDS[0]} and coordinates {_COORDS}, or leave them out to take the rows by order."
        )


def patch_level0(attributes: Mapping[str, Any]) -> float | None:
    """Side of a patch in level-0 pixels, by the attributes of TRIDENT or CLAM; None if they do not say."""
    level0 = _number(attributes, "patch_size_level0")
    if level0 is not None:
        return level0
    side = _number(attributes, "patch_size")
    if side is None:
        return None
    source, target = (_number(attributes, f"{which}_magnification") for which in ("level0", "target"))
    if source is not None and target is not None:
        return side * source / target
    # CLAM: patches of `patch_size` pixels of a level that is `downsample` times smaller than level 0.
    shrunk = _number(attributes, "downsample")
    if shrunk is None and _number(attributes, "patch_level", least=0) == 0:
        shrunk = 1.0
    return None if shrunk is None else side * shrunk * (_number(attributes, "custom_downsample") or 1.0)


def _number(attributes: Mapping[str, Any], name: str, least: float | None = None) -> float | None:
    """An attribute as a positive number, of an array the mean; TRIDENT writes the text None for nothing."""
    try:
        value = float(np.mean(np.asarray(attributes[name], dtype=np.float64)))
    except (KeyError, ValueError, TypeError):
        return None
    usable = value > 0 if least is None else value >= least
    return value if usable and np.isfinite(value) else None


def _rows(array: NDArray[Any], path: Path, what: str) -> NDArray[np.floating[Any]]:
    """(n, d); TRIDENT and others may write (1, n, d)."""
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2 or 0 in array.shape:
        raise FeaturesError(
            f"{path}: {what} is of shape {array.shape}; it should be (spots, width), one embedding a spot."
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise FeaturesError(f"{path}: {what} holds {array.dtype}; it should hold floating-point numbers.")
    return array


def _ids(array: NDArray[Any], n: int, path: Path) -> tuple[str, ...] | None:
    """(n,) or (n, 1) of bytes or text; None where all are empty, which is how HEST says that it has none."""
    if array.shape not in ((n,), (n, 1)):
        raise FeaturesError(f"{path} has {n} embeddings and ids of shape {array.shape}; write one id a row.")
    try:
        ids = tuple(
            name.decode() if isinstance(name, bytes) else str(name) for name in array.reshape(n).tolist()
        )
    except UnicodeDecodeError as error:
        raise FeaturesError(f"{path} has ids that are not UTF-8 text ({first_line(error)}).") from error
    return ids if any(ids) else None


def _coords(array: NDArray[Any], n: int, path: Path) -> NDArray[np.float64]:
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    numbers = np.issubdtype(array.dtype, np.number) and not np.iscomplexobj(array)
    if array.shape != (n, 2) or not numbers or not np.isfinite(array).all():
        raise FeaturesError(
            f"{path} has {n} embeddings and coordinates of shape {array.shape} ({array.dtype}); they should"
            f" be finite numbers of shape ({n}, 2)."
        )
    return np.asarray(array, dtype=np.float64)
