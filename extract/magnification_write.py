"""One magnification, write side: rows in whole chunks, each recorded after its bytes, `complete` last."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from mmap_st.errors import RecipeMismatchError, StoreError
from mmap_st.extract.magnification import magnification_in
from mmap_st.extract.recipe import Recipe, differences
from mmap_st.extract.recipe_json import sha256_of_json
from mmap_st.extract.store import FeatureStore, encode_name, store_errors, subgroup
from mmap_st.extract.store_write import mismatch_sentence, versions
from mmap_st.extract.windows import mpp_key

_FLOAT16_MAX = 65_504.0
_ARRAYS = ("embedding", "valid", "in_bounds", "tissue")
#: Most of a chunk's rows in float32: tokens make rows long, and a chunk is written from memory.
_CHUNK_BYTES = 64 << 20


class MagnificationWriter:
    """Writes one magnification of one slide; goes on from the chunks that are there.

    Parameters
    ----------
    store
        Open for writing; the caller holds the slide's lock.
    slide, encoder, mpp
        Where to.
    recipe
        What the rows are made by.
    shape
        Number of spots and width of an embedding.
    chunk
        Rows of a chunk, for a magnification that is not there yet; fewer where tokens make rows long.
    tokens
        Side g of the grid of tokens, and length t of one; g is 0 where there are none.
    overwrite
        Replace what another recipe made; and where all is there, try chunks with unreadable windows again, as
        is done anyway where not all is there.

    Attributes
    ----------
    begun_anew
        Whether nothing of it was there, or what was there is being replaced.

    Raises
    ------
    RecipeMismatchError
        If another recipe made what is there, and `overwrite` is False.
    """

    def __init__(
        self,
        store: FeatureStore,
        slide: str,
        encoder: str,
        mpp: float,
        recipe: Recipe,
        shape: tuple[int, int],
        *,
        chunk: int,
        tokens: tuple[int, int] = (0, 0),
        overwrite: bool = False,
    ) -> None:
        self._path = store.path
        self._shape = shape
        self._tokens = tokens
        with store_errors(self._path):
            parent = store.require_group(slide, encode_name(encoder))
            group = subgroup(parent, mpp_key(mpp))
            if group is not None and "recipe" in group.attrs:
                different = differences(_attr(group, "recipe"), recipe)
                if different and not overwrite:
                    raise RecipeMismatchError(mismatch_sentence(encoder, mpp, different))
                if different or not self._whole(group):
                    # Nothing of it counts any more, also if the process dies before all is deleted.
                    group.attrs.update({"complete": False, "chunks_done": []})
                    group = None
            parent.attrs.update({"name": encoder, "encoder": recipe["encoder"]})
            self.begun_anew = group is None or "recipe" not in group.attrs
            if group is None or "recipe" not in group.attrs:
                group = self._start(parent, mpp_key(mpp), recipe, chunk)
            self._group = group
        self._done = {int(index) for index in _attr(group, "chunks_done")}
        # Where all is written and only the mark is missing, nothing is begun again.
        if overwrite or self.pending():
            self.reopen()

    def _start(self, parent: zarr.Group, key: str, recipe: Recipe, chunk: int) -> zarr.Group:
        group = parent.create_group(key, overwrite=True)
        n, _ = self._shape
        row_width = sum(int(np.prod(shape)) for shape in self._floats().values())
        chunk = max(1, min(chunk, _CHUNK_BYTES // (4 * row_width)))
        for name in self._floats():
            self._create(group, name, "float16", chunk)
        group.create_array("valid", shape=(n,), dtype="bool", chunks=(chunk,), fill_value=False)
        group.create_array("in_bounds", shape=(n,), dtype="float32", chunks=(chunk,), fill_value=0.0)
        group.create_array("tissue", shape=(n,), dtype="float32", chunks=(chunk,), fill_value=float("nan"))
        # The recipe comes last: a group without one is begun anew.
        group.attrs.update(
            {
                "chunks_done": [],
                "versions": versions(),
                "recipe_sha256": sha256_of_json(recipe),
                "recipe": recipe,
            }
        )
        return group

    def _floats(self) -> dict[str, tuple[int, ...]]:
        """The arrays of float16 or float32, with the shape of a row."""
        side, width = self._tokens
        return {"embedding": self._shape[1:], **({"tokens": (side, side, width)} if side else {})}

    def _create(self, group: zarr.Group, name: str, dtype: str, chunk: int) -> zarr.Array[Any]:
        row = self._floats()[name]
        return group.create_array(
            name,
            shape=(self._shape[0], *row),
            dtype=dtype,
            chunks=(chunk, *row),
            compressors=ZstdCodec(level=3),
            fill_value=float("nan"),
            overwrite=True,
        )

    def _whole(self, group: zarr.Group) -> bool:
        """Whether all arrays are there: a process that died while it replaced one leaves a gap."""
        return all(isinstance(group.get(name), zarr.Array) for name in (*_ARRAYS, *self._floats()))

    @property
    def complete(self) -> bool:
        """Whether all is there and published."""
        return self._group.attrs.get("complete") is True

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk."""
        return int(self._array("embedding").chunks[0])

    @property
    def n_chunks(self) -> int:
        """Chunks of the whole magnification."""
        return -(-self._shape[0] // self.chunk_rows)

    def pending(self) -> tuple[int, ...]:
        """Chunks that are still to be written, in order."""
        return tuple(index for index in range(self.n_chunks) if index not in self._done)

    def rows(self, index: int) -> range:
        """Rows of a chunk."""
        return range(index * self.chunk_rows, min((index + 1) * self.chunk_rows, self._shape[0]))

    def write_chunk(
        self,
        index: int,
        values: NDArray[np.float32],
        valid: NDArray[np.bool_],
        in_bounds: NDArray[np.float32],
        tissue: NDArray[np.float32] | None = None,
    ) -> None:
        """Write one whole chunk of rows, then record it; rows that are not valid become NaN.

        `values` (k, d + g * g * t) are embeddings, and behind each the tokens of its grid. `tissue` is each
        window's share of tissue; None where nobody looked.
        """
        rows = self.rows(index)
        where = slice(rows.start, rows.stop)
        values = np.where(valid[:, None], values, np.float32(np.nan))
        # Rounded the same way whatever the array's type, so that neither the order of the chunks nor a
        # kill in between can change a number.
        fits = ~(np.abs(values) > _FLOAT16_MAX)
        values[fits] = values[fits].astype(np.float16)
        with store_errors(self._path):
            start = 0
            for name, shape in self._floats().items():
                part = values[:, start : start + int(np.prod(shape))]
                start += part.shape[1]
                if np.max(np.abs(part[valid]), initial=0.0) > _FLOAT16_MAX:
                    self._widen(name)
                self._array(name)[where] = part.reshape(-1, *shape)
            self._array("valid")[where] = valid
            self._array("in_bounds")[where] = in_bounds
            if tissue is not None:
                self._array("tissue")[where] = tissue
            self._done.add(index)
            self._group.attrs["chunks_done"] = sorted(self._done)

    def finish(self, record: dict[str, Any]) -> None:
        """Publish: after this, readers see the magnification. `record` is stored beside it."""
        if self.pending():
            raise StoreError(f"chunks {self.pending()} are not written; this is a defect of the program.")
        with store_errors(self._path):
            self._group.attrs.update({**record, "complete": True})

    def valid(self, part: slice) -> NDArray[np.bool_]:
        """Which rows of a part have an embedding."""
        return np.asarray(self._array("valid")[part], dtype=np.bool_)

    def reopen(self) -> None:
        """Count chunks with windows that could not be read as not written, so that they are tried again."""
        with store_errors(self._path):
            unreadable = np.flatnonzero(magnification_in(self._group).unreadable()) // self.chunk_rows
            if len(unreadable):
                self._done -= set(unreadable.tolist())
                self._group.attrs.update({"complete": False, "chunks_done": sorted(self._done)})

    def _widen(self, name: str) -> None:
        """Change an array to float32; a kill in the middle costs its chunks, never wrong rows."""
        if self._array(name).dtype != np.float16:
            return
        before = np.asarray(self._array(name)[:], dtype=np.float32)
        self._group.attrs["chunks_done"] = []
        self._create(self._group, name, "float32", self.chunk_rows)[:] = before

    def _array(self, key: str) -> zarr.Array[Any]:
        found = self._group[key]
        if not isinstance(found, zarr.Array):
            raise StoreError(f"{self._path} has no array {key} in {self._group.path}; it is damaged.")
        return found


def _attr(group: zarr.Group, key: str) -> Any:
    return group.attrs[key]
