"""One magnification of one encoder on one slide, as a store holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from mmap_st.errors import StoreError, first_line
from mmap_st.extract.store.recipe import Recipe

#: The arrays of every magnification.
ARRAYS = ("embedding", "valid", "in_bounds", "tissue")


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
    group: zarr.Group

    def embedding(self) -> NDArray[np.float32]:
        """(n, d) float32; rows of windows that could not be read are NaN."""
        return self.embedding_rows(slice(None))

    def embedding_rows(self, rows: slice) -> NDArray[np.float32]:
        """(k, d) float32 of some rows; those of windows that could not be read are NaN."""
        return np.asarray(array_in(self.group, "embedding")[rows], dtype=np.float32)

    @property
    def tokens(self) -> int:
        """Side g of its grid of tokens; 0 where it has none."""
        return array_in(self.group, "tokens").shape[1] if "tokens" in self.recipe else 0

    @property
    def token_width(self) -> int:
        """Length t of a token of its grid; 0 where it has none."""
        return array_in(self.group, "tokens").shape[3] if "tokens" in self.recipe else 0

    def token_rows(self, rows: slice) -> NDArray[np.float32]:
        """(k, g, g, t) float32 tokens of some rows; rows of windows that could not be read are NaN."""
        return np.asarray(array_in(self.group, "tokens")[rows], dtype=np.float32)

    def valid(self) -> NDArray[np.bool_]:
        """(n,) False where the window could not be read."""
        return np.asarray(array_in(self.group, "valid")[:], dtype=np.bool_)

    def skipped(self) -> NDArray[np.bool_]:
        """(n,) windows that were left out on purpose: they show less tissue than was requested."""
        least = self.recipe.get("tissue_min")
        if not least:
            return np.zeros(array_in(self.group, "valid").shape, np.bool_)
        return np.asarray(array_in(self.group, "tissue")[:]) < np.float32(least)

    def unreadable(self) -> NDArray[np.bool_]:
        """(n,) windows that could not be read; of those not yet written, none."""
        return ~self.valid() & ~self.skipped() & self.written()

    def written(self) -> NDArray[np.bool_]:
        """(n,) rows of chunks that are recorded as done."""
        array = array_in(self.group, "valid")
        done: Any = self.group.attrs["chunks_done"]
        return np.isin(np.arange(array.shape[0]) // array.chunks[0], np.array(done, np.int64))

    @property
    def whole(self) -> bool:
        """Whether all its arrays are there: a process that died while it replaced one leaves a gap."""
        names = (*ARRAYS, *(("tokens",) if "tokens" in self.recipe else ()))
        return all(isinstance(member_of(self.group, name), zarr.Array) for name in names)

    @property
    def chunks_done(self) -> int:
        """How many chunks are written."""
        return len(self.group.attrs["chunks_done"])  # type: ignore[arg-type]

    @property
    def n_chunks(self) -> int:
        """Chunks of the whole magnification."""
        array = array_in(self.group, "embedding")
        return -(-array.shape[0] // array.chunks[0])

    @property
    def width(self) -> int:
        """Length d of an embedding."""
        return int(array_in(self.group, "embedding").shape[1])


def magnification_in(group: zarr.Group) -> Magnification:
    """What a group holds that has a recipe."""
    return Magnification(
        mpp=float(group.basename),
        recipe=group.attrs["recipe"],  # type: ignore[arg-type]
        recipe_sha256=str(group.attrs["recipe_sha256"]),
        complete=group.attrs.get("complete") is True,
        group=group,
    )


def array_in(group: zarr.Group, key: str) -> zarr.Array[Any]:
    """A member that is an array.

    Raises
    ------
    StoreError
        If it is missing.
    """
    found = member_of(group, key)
    if not isinstance(found, zarr.Array):
        raise StoreError(f"{group.store_path} has no array {key}: the store is damaged.")
    return found


def member_of(group: zarr.Group, key: str) -> zarr.Array[Any] | zarr.Group | None:
    """An array or a group within a group; None where there is none.

    Raises
    ------
    StoreError
        If what says what it is cannot be understood.
    """
    try:
        return group.get(key)
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # by what is damaged
        raise StoreError(
            f"{group.store_path}/{key} is damaged ({type(error).__name__}: {first_line(error)});"
            " restore it from a copy, or delete it and run the same command again."
        ) from error
