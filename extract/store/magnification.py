"""One magnification of one encoder on one slide as a store holds it, and several read together in blocks."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import zarr
from numpy.typing import NDArray

from mmap_st.errors import DamagedSlideError
from mmap_st.extract.store.integrity import check_description, chunk_keys, damaged, has_digests
from mmap_st.extract.store.nodes import (
    array_in,
    folder_of,
    mapping,
    numbers,
    read_array,
    shape_in,
    shape_or_none,
    text,
    wrong_attribute,
)
from mmap_st.extract.store.recipe import Recipe
from mmap_st.extract.store.storage import StoreBucket
from mmap_st.files import sha256_of_json

if TYPE_CHECKING:
    import anndata

_LOG = logging.getLogger(__name__)
#: The arrays of every magnification.
ARRAYS = ("embedding", "valid", "in_bounds", "tissue")
#: Attribute with the number of rows that are not valid; earlier versions did not write it.
INVALID = "invalid"


@dataclass(frozen=True)
class Magnification:
    """One stored magnification of one encoder on one slide.

    Attributes
    ----------
    mpp
        Micrometres per pixel of its windows.
    recipe
        What its numbers depend on.
    recipe_sha256
        Of the recipe's canonical JSON.
    complete
        False while it is being written.
    """

    mpp: float
    recipe: Recipe
    recipe_sha256: str
    complete: bool
    group: zarr.Group = field(repr=False)

    def embedding(self) -> NDArray[np.float32]:
        """(n, d) float32; rows of windows that could not be read are NaN."""
        return self.embedding_rows(slice(None))

    def embedding_rows(self, rows: slice) -> NDArray[np.float32]:
        """(k, d) float32 of some rows; those of windows that could not be read are NaN."""
        return self._finite("embedding", rows)

    @property
    def tokens(self) -> int:
        """Side g of its grid of tokens; 0 where it has none."""
        return shape_in(self.group, "tokens")[1] if "tokens" in self.recipe else 0

    @property
    def token_width(self) -> int:
        """Length t of a token of its grid; 0 where it has none."""
        return shape_in(self.group, "tokens")[3] if "tokens" in self.recipe else 0

    def token_rows(self, rows: slice) -> NDArray[np.float32]:
        """(k, g, g, t) float32 tokens of some rows; rows of windows that could not be read are NaN."""
        return self._finite("tokens", rows)

    def _finite(self, name: str, rows: slice) -> NDArray[np.float32]:
        """Rows of an array as float32; numbers are missing only where the window could not be read."""
        found = read_array(self.group, name, rows).astype(np.float32, copy=False)
        unusable = ~np.isfinite(found.reshape(len(found), -1)).all(axis=1)
        if unusable.any():
            valid = read_array(self.group, "valid", rows)
            if len(valid) != len(found) or valid[unusable].any():
                raise damaged(self.group, name, "rows that are marked as valid hold no numbers")
        return found

    def valid(self) -> NDArray[np.bool_]:
        """(n,) False where the window could not be read."""
        return read_array(self.group, "valid")

    def in_bounds(self) -> NDArray[np.float32]:
        """(n,) share of each window inside the slide; NaN where nobody looked."""
        return read_array(self.group, "in_bounds")

    def tissue(self) -> NDArray[np.float32]:
        """(n,) share of each window that is tissue; NaN where nobody looked."""
        return read_array(self.group, "tissue")

    @property
    def invalid(self) -> int:
        """How many rows of a complete magnification are not valid."""
        found = self.group.attrs.get(INVALID)
        return found if type(found) is int else int((~self.valid()).sum())

    def skipped(self, rows: slice = slice(None)) -> NDArray[np.bool_]:
        """(k,) windows that were left out on purpose: they show less tissue than was requested."""
        least = self.recipe.get("tissue_min")
        if not isinstance(least, float | int) or not least:
            return np.zeros(shape_in(self.group, "valid"), np.bool_)[rows]
        tissue: NDArray[np.float32] = read_array(self.group, "tissue", rows)
        return tissue < np.float32(least)

    def unreadable(self) -> NDArray[np.bool_]:
        """(n,) windows that could not be read; of those not yet written, none."""
        array = array_in(self.group, "valid")
        found, step = np.zeros(array.shape, np.bool_), array.chunks[0]
        for chunk in numbers(self.group, "chunks_done"):
            rows = slice(chunk * step, (chunk + 1) * step)
            found[rows] = ~read_array(self.group, "valid", rows) & ~self.skipped(rows)
        return found

    @property
    def whole(self) -> bool:
        """Whether all its arrays are there: a process that died while it replaced one leaves a gap."""
        return set(self.arrays) <= self.shapes.keys()

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of its arrays, without those that are missing, as they were when this was opened."""
        found = {name: shape_or_none(self.group, name) for name in self.arrays}
        return {name: shape for name, shape in found.items() if shape is not None}

    def verify(self) -> None:
        """Read all of a complete magnification, as it was written.

        Raises
        ------
        DamagedSlideError
            If something of it is not.
        """
        for name in self.arrays:
            array_in(self.group, name)
        valid, step = self.valid(), array_in(self.group, "embedding").chunks[0]
        for start in range(0, len(valid), step):
            rows = slice(start, start + step)
            for name in ("embedding", "tokens") if "tokens" in self.recipe else ("embedding",):
                # Where rows are valid and hold no numbers, reading them says so.
                if np.isfinite(self._finite(name, rows)[~valid[rows]]).any():
                    raise damaged(self.group, "valid", "rows that are marked as not valid hold numbers")
            read_array(self.group, "in_bounds", rows)
            read_array(self.group, "tissue", rows)

    def is_sound(self) -> bool:
        """Whether all of a complete magnification is as it was written; else it is logged what is not."""
        place = folder_of(self.group)
        try:
            if isinstance(place, StoreBucket):
                self._check_objects(place)
            else:
                self.verify()
        except DamagedSlideError as error:
            _LOG.warning("%s", error.found)
            return False
        return True

    def _check_objects(self, place: StoreBucket) -> None:
        """Of what a server keeps whole, see that it is there, which takes one request and not one a chunk."""
        there = place.sizes(self.group.path)
        for name in self.arrays:
            check_description(self.group, name)
            keys = (f"{self.group.path}/{name}/{key}" for key in chunk_keys(self.group, name))
            if missing := next((key for key in keys if key not in there), None):
                raise damaged(self.group, name, f"its chunk {missing} is missing")

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of its arrays."""
        return (*ARRAYS, *(("tokens",) if "tokens" in self.recipe else ()))

    @property
    def chunks_done(self) -> int:
        """How many chunks are written."""
        return len(numbers(self.group, "chunks_done"))

    @property
    def n_chunks(self) -> int:
        """Chunks of the whole magnification."""
        array = array_in(self.group, "embedding")
        return -(-array.shape[0] // array.chunks[0])

    @property
    def width(self) -> int:
        """Length d of an embedding."""
        return shape_in(self.group, "embedding")[1]

    @property
    def published_width(self) -> int | None:
        """The same where all is there, as its description was written; None while it is being written."""
        if not self.complete:
            return None
        check_description(self.group, "embedding")
        return self.width


def magnification_in(group: zarr.Group) -> Magnification:
    """What a group holds that has a recipe.

    Raises
    ------
    StoreError
        If its attributes are not what was written.
    """
    recipe = dict(mapping(group, "recipe"))
    sha256 = text(group, "recipe_sha256")
    assert sha256 is not None
    if sha256_of_json(recipe) != sha256:
        raise wrong_attribute(group, "recipe")
    try:
        mpp = float(group.basename)
    except ValueError:
        raise damaged(group, "zarr.json", "its folder is not named by micrometres per pixel") from None
    numbers(group, "chunks_done")
    if has_digests(group) and not isinstance(group.attrs.get("complete"), bool):
        raise wrong_attribute(group, "complete")
    return Magnification(
        mpp=mpp,
        recipe=recipe,
        recipe_sha256=sha256,
        complete=group.attrs.get("complete") is True,
        group=group,
    )


#: Size of a block of rows as float32. Slides of some thousand spots are one block.
BLOCK_BYTES = 128 << 20

Rows = NDArray[np.int64]
#: What rows can be chosen by: a slice, indices in any order, or a mask.
RowIndex = slice | Rows | NDArray[np.bool_]


class Embeddings(Protocol):
    """(n, M, d) float32 rows, finest magnification first: an array, or what reads as one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """n, M and d."""
        ...

    def __getitem__(self, rows: RowIndex, /) -> NDArray[np.float32]:
        """(k, M, d) float32; rows of windows that could not be read are NaN."""
        ...


class StoredRows(ABC):
    """Rows that stay in a store and are read on demand.

    Parameters
    ----------
    magnifications
        Finest first.
    rows
        (n,) which rows of the store, in any order; None: all.
    """

    def __init__(self, magnifications: Sequence[Magnification], rows: Rows | None = None) -> None:
        self._magnifications = tuple(magnifications)
        total = len(magnifications[0].valid()) if rows is None else 0
        self._rows = np.arange(total) if rows is None else rows

    @property
    def shape(self) -> tuple[int, ...]:
        """n, M and the shape of what one magnification has of a spot."""
        return len(self._rows), len(self._magnifications), *self._shape_of(self._magnifications[0])

    def __getitem__(self, rows: RowIndex, /) -> NDArray[np.float32]:
        """(k, M, ...) float32, indexed as NumPy indexes an array: any order, repeated, negative, a mask."""
        wanted = self._rows[rows]
        _, _, *inner = shape = self.shape
        found = np.empty((len(wanted), *shape[1:]), np.float32)
        # Read in ascending order, so that each chunk of the store is read once however rows are scattered.
        order = np.argsort(wanted, kind="stable")
        ascending = wanted[order]
        for run in _runs(ascending, _rows_of_a_block(shape)):
            part = ascending[run]
            first, last = int(part[0]), int(part[-1]) + 1
            for m, magnification in enumerate(self._magnifications):
                read = self._read(magnification, slice(first, last)).reshape(-1, *inner)
                found[order[run], m] = read[part - first]
        return found

    def subset(self, rows: Rows) -> Self:
        """The same with these rows only; nothing is read."""
        return type(self)(self._magnifications, self._rows[rows])

    def at(self, magnification: int) -> Self:
        """The same at one magnification only, by its number from 0 on; nothing is read."""
        return type(self)([self._magnifications[magnification]], self._rows)

    @staticmethod
    @abstractmethod
    def _shape_of(magnification: Magnification) -> tuple[int, ...]:
        """Of what it has of a spot."""

    @staticmethod
    @abstractmethod
    def _read(magnification: Magnification, rows: slice) -> NDArray[np.float32]:
        """What it has of consecutive rows of the store."""


class StoredEmbeddings(StoredRows):
    """Embeddings (n, M, d) in a store."""

    @staticmethod
    def _shape_of(magnification: Magnification) -> tuple[int, ...]:
        return (magnification.width,)

    @staticmethod
    def _read(magnification: Magnification, rows: slice) -> NDArray[np.float32]:
        return magnification.embedding_rows(rows)


class StoredTokens(StoredRows):
    """Grids of tokens (n, M, g * g, t) in a store, each row by row; all magnifications have some."""

    @staticmethod
    def _shape_of(magnification: Magnification) -> tuple[int, ...]:
        return magnification.tokens**2, magnification.token_width

    @staticmethod
    def _read(magnification: Magnification, rows: slice) -> NDArray[np.float32]:
        return magnification.token_rows(rows)


def embeddings_as_anndata(
    slide: str,
    ids: Sequence[str],
    xy: NDArray[np.float64],
    encoder: str,
    magnifications: Sequence[Magnification],
) -> anndata.AnnData:
    """Embeddings at one or several magnifications, next to each other.

    Parameters
    ----------
    slide, encoder
        Names, for ``uns["mmap"]``.
    ids
        (n,) of the spots.
    xy
        (n, 2) their centres in level-0 pixels.
    magnifications
        Whose embeddings, all of width d.

    Returns
    -------
    ``X`` (n, M * d) float32; ``var`` with ``mpp`` and ``dimension``; ``obs`` with ``valid`` (at every
    magnification); ``obsm["spatial"]``; what it is of in ``uns["mmap"]``.
    """
    import anndata
    import pandas as pd

    var = pd.concat(
        [
            pd.DataFrame(
                {"mpp": m.mpp, "dimension": np.arange(m.width)},
                index=[f"{m.mpp:g}_{number}" for number in range(m.width)],
            )
            for m in magnifications
        ]
    )
    valid = np.logical_and.reduce([m.valid() for m in magnifications])
    table = anndata.AnnData(
        X=np.concatenate([m.embedding() for m in magnifications], axis=1),
        obs=pd.DataFrame({"valid": valid}, index=pd.Index(ids, dtype=object)),
        var=var,
        obsm={"spatial": xy},
    )
    table.uns["mmap"] = {
        "slide": slide,
        "encoder": encoder,
        "mpp": [m.mpp for m in magnifications],
        "recipe_sha256": [m.recipe_sha256 for m in magnifications],
        "spatial_units": "level-0 pixels of the image, x to the right, y down",
    }
    return table


def row_blocks(embedding: Embeddings, rows: Rows, size: int = BLOCK_BYTES) -> Iterator[tuple[slice, Rows]]:
    """Cut `rows` into blocks of about `size` bytes: where each lies among them, and its rows."""
    step = _rows_of_a_block(embedding.shape, size)
    for start in range(0, len(rows), step):
        yield slice(start, start + step), rows[start : start + step]


def _rows_of_a_block(shape: tuple[int, ...], size: int = BLOCK_BYTES) -> int:
    return max(1, size // (4 * int(np.prod(shape[1:]))))


def _runs(wanted: Rows, most: int) -> Iterator[slice]:
    """Cut ascending rows so that no part spans more than `most` rows of the store."""
    start = 0
    while start < len(wanted):
        stop = int(np.searchsorted(wanted, wanted[start] + most))
        yield slice(start, stop)
        start = stop
