"""The feature store, write side: slides with their spots, and magnifications in whole chunks."""

from __future__ import annotations

import logging
import platform
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

import mmap_st
from mmap_st.data import Spots
from mmap_st.errors import (
    DamagedSlideError,
    LinkInStoreError,
    RecipeMismatchError,
    SlideRecipeError,
    StoreError,
    counted,
    printable,
)
from mmap_st.extract.store.integrity import (
    COMPRESSORS,
    DIGESTS,
    damaged,
    damaged_chunks,
    digests_of,
    opened,
)
from mmap_st.extract.store.magnification import ARRAYS, INVALID, magnification_in
from mmap_st.extract.store.nodes import array_in, folder_of, mapping, mend, numbers, subgroup
from mmap_st.extract.store.reader import FeatureStore, store_errors
from mmap_st.extract.store.recipe import Recipe, check_encoder_name, differences, encode_name
from mmap_st.extract.store.soundness import DRAFT
from mmap_st.extract.store.storage import drafts_below
from mmap_st.extract.store.stored_slide import SPOT_ARRAYS, SlideInfo
from mmap_st.extract.windows import mpp_key
from mmap_st.files import sha256_of_json

_LOG = logging.getLogger(__name__)
_SPOTS_CHUNK = 65_536


def write_slide(
    store: FeatureStore, info: SlideInfo, spots: Spots, made_by: Mapping[str, object] | None = None
) -> None:
    """Add a slide and its spots, once; the caller holds the slide's lock.

    `made_by` is recorded with them: how a grid was placed, None for spots of a spot table.

    Raises
    ------
    SlideRecipeError
        If the store has the slide with other spots.
    """
    with store_errors(store.folder):
        for leftover in drafts_below(store.folder / encode_name(info.name)):
            leftover.unlink(missing_ok=True)  # of a writer that was killed
        group = store.require_group(info.name)
        group.update_attributes(_attributes({**info.attributes, "sha256": info.sha256}))
        mend(folder_of(group), "spots")
        stored = subgroup(group, "spots")
        if stored is not None and stored.attrs.get("complete") is True:
            try:
                check_spots(store, info.name, spots)
                return
            except DamagedSlideError as error:  # the rows that were made of them are checked on their own
                _LOG.warning("slide %s: %s", printable(info.name), error.found)
        stored = group.create_group("spots", overwrite=True)
        chunk = min(len(spots), _SPOTS_CHUNK)
        ids = stored.create_array(
            "id", shape=(len(spots),), dtype=str, chunks=(chunk,), compressors=COMPRESSORS
        )
        ids[:] = np.array(spots.ids, dtype=np.dtypes.StringDType())
        xy = stored.create_array(
            "xy", shape=(len(spots), 2), dtype="float64", chunks=(chunk, 2), compressors=COMPRESSORS
        )
        xy[:] = spots.xy
        if made_by is not None:
            stored.attrs["made_by"] = _attributes(made_by)
        stored.update_attributes(_attributes({DIGESTS: digests_of(stored, SPOT_ARRAYS), "complete": True}))


def _attributes(content: Mapping[str, object]) -> dict[str, Any]:
    """What Zarr writes as JSON; its own type of that is recursive, and no other module needs it."""
    return dict(content)


def write_telemetry(store: FeatureStore, slide: str, encoder: str, figures: Mapping[str, object]) -> None:
    """Record what the last run that embedded something measured of itself."""
    with store_errors(store.folder):
        group = store.require_group(slide, encode_name(encoder))
        group.attrs["telemetry"] = _attributes(figures)


def check_spots(store: FeatureStore, name: str, spots: Spots) -> None:
    """Refuse spots other than those that the store has of this slide."""
    slide = store.slide(name)
    ids, xy = slide.spot_ids(), slide.spot_xy()
    if ids != spots.ids or not np.array_equal(xy, spots.xy):
        grid = slide.spots_made_by()
        there = f"{len(ids)} there" + (f", a {grid['layout']} grid" if grid else "")
        raise SlideRecipeError(
            f"the store has it with other spots ({there}, {len(spots)} now);"
            " use another store, or restore its spot and count tables."
        )


def mismatch_sentence(encoder: str, mpp: float, different: Sequence[str]) -> str:
    """The sentence for the case that a recipe differs."""
    return (
        f"the store has {encoder} at {mpp_key(mpp)} um/px made with another recipe"
        f" ({'; '.join(different)}); use another store, or --overwrite to replace it."
    )


def versions() -> dict[str, str]:
    """What made the numbers: recorded with recipes, and never compared."""
    return {
        "mmap-st": mmap_st.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


_PACKAGES = (
    "torch",
    "timm",
    "pillow",
    "openslide-python",
    "simplejpeg",
    "tifffile",
    "numba",
    "zarr",
    "numpy",
)
# Asked for each magnification of each slide, and read from a file each time.
_version = cache(version)


_FLOAT16_MAX = 65_504.0
#: Most of a chunk's rows in float32: tokens make rows long, and a chunk is written from memory.
_CHUNK_BYTES = 64 << 20


class MagnificationWriter:
    """Writes one magnification of one slide; resumes from the chunks that are there.

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
    started_anew
        Whether nothing of it was there, or what was there is being replaced.
    chunk_rows
        Rows of a chunk.

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
        check_encoder_name(encoder)
        self._path = store.folder
        self._shape = shape
        self._tokens = tokens
        with store_errors(self._path):
            parent = store.require_group(slide, encode_name(encoder))
            group = _undamaged(parent, mpp_key(mpp))
            if group is not None and "recipe" in group.attrs:
                different = differences(mapping(group, "recipe"), recipe)
                if different and not overwrite:
                    raise RecipeMismatchError(mismatch_sentence(encoder, mpp, different))
                if different or not self._is_sound(group):
                    # Nothing of it counts any more, also if the process dies before all is deleted.
                    group.update_attributes({"complete": False, "chunks_done": []})
                    group = None
            parent.update_attributes(_attributes({"name": encoder, "encoder": recipe["encoder"]}))
            self.started_anew = group is None or "recipe" not in group.attrs
            if group is None or "recipe" not in group.attrs:
                group = self._start(parent, mpp_key(mpp), recipe, chunk)
            self._group = group
            self._folder = self._path / encode_name(slide) / encode_name(encoder) / mpp_key(mpp)
            self._remove_drafts()
            # Opened once: a look at the disk for each row made the writing thread slower than a GPU.
            self._arrays = {name: self._opened(name) for name in self._names}
            self.chunk_rows = int(self._arrays["embedding"].chunks[0])
        self._done = {index for index in numbers(group, "chunks_done") if index < self.n_chunks}
        self._leave_out_damaged()
        # Where all is written and only the mark is missing, nothing is started again.
        if overwrite or self.pending():
            self.reopen()

    def _start(self, parent: zarr.Group, key: str, recipe: Recipe, chunk: int) -> zarr.Group:
        group = parent.create_group(key, overwrite=True)
        n, _ = self._shape
        row_width = sum(int(np.prod(shape)) for shape in self._floats().values())
        chunk = max(1, min(chunk, _CHUNK_BYTES // (4 * row_width)))
        for name, row in self._floats().items():
            self._create(group, name, "float16", chunk, row)
        for name, dtype, fill in (
            ("valid", "bool", False),
            ("in_bounds", "float32", 0.0),
            ("tissue", "float32", float("nan")),
        ):
            group.create_array(
                name, shape=(n,), dtype=dtype, chunks=(chunk,), fill_value=fill, compressors=COMPRESSORS
            )
        # The recipe comes last: a group without one is started again.
        group.update_attributes(
            {
                "chunks_done": [],
                "versions": versions(),
                "recipe_sha256": sha256_of_json(recipe),
                "recipe": _attributes(recipe),
            }
        )
        return group

    def _floats(self) -> dict[str, tuple[int, ...]]:
        """The arrays of float16 or float32, with the shape of a row."""
        side, width = self._tokens
        return {"embedding": self._shape[1:], **({"tokens": (side, side, width)} if side else {})}

    def _create(
        self, group: zarr.Group, name: str, dtype: str, chunk: int, row: tuple[int, ...]
    ) -> zarr.Array[Any]:
        return group.create_array(
            name,
            shape=(self._shape[0], *row),
            dtype=dtype,
            chunks=(chunk, *row),
            compressors=COMPRESSORS,
            fill_value=float("nan"),
            overwrite=True,
        )

    def _is_sound(self, group: zarr.Group) -> bool:
        """Whether its arrays can be written on: else nothing of them counts.

        A process that died while it replaced one leaves a gap. A damaged description may claim another shape
        or type. Of what was published and is another's now, nothing tells which chunks are this slide's.

        Raises
        ------
        LinkInStoreError
            If one of them is a link.
        """
        try:
            chunk = array_in(group, "embedding").chunks[0]
            for name in self._names:
                array, row = array_in(group, name), self._floats().get(name, ())
                if (array.shape, array.chunks) != ((self._shape[0], *row), (chunk, *row)):
                    raise damaged(group, name, f"it has shape {array.shape} in chunks of {array.chunks}")
        except LinkInStoreError:
            raise
        except DamagedSlideError as error:
            _LOG.warning("%s; all of this magnification is made again", error.found)
            return False
        return True

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple({**self._floats(), **dict.fromkeys(ARRAYS)})

    def _leave_out_damaged(self) -> None:
        """Count chunks that cannot be read as they were written as missing, so that they are made again."""
        with store_errors(self._path):
            lost = damaged_chunks(self._group, self._names, sorted(self._done))
            if lost:
                again = counted(len(lost), "damaged chunk is", "damaged chunks are")
                _LOG.warning("%s: %s made again", printable(str(self._folder)), again)
                self._done -= lost
                self._group.update_attributes({"complete": False, "chunks_done": sorted(self._done)})

    @property
    def complete(self) -> bool:
        """Whether all is there and published."""
        return self._group.attrs.get("complete") is True

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
                self._arrays[name][where] = part.reshape(-1, *shape)
            self._arrays["valid"][where] = valid
            self._arrays["in_bounds"][where] = in_bounds
            self._arrays["tissue"][where] = np.nan if tissue is None else tissue
            self._done.add(index)
            self._group.attrs["chunks_done"] = sorted(self._done)

    def finish(self, record: dict[str, object]) -> None:
        """Publish: after this, readers see the magnification. `record` is stored with it."""
        if self.pending():
            raise StoreError(f"chunks {self.pending()} are not written; this is a bug; please report it.")
        with store_errors(self._path):
            published = {
                INVALID: int((~self.valid(slice(None))).sum()),
                DIGESTS: digests_of(self._group, self._names),
                "complete": True,
            }
            self._group.update_attributes(_attributes({**record, **published}))

    def valid(self, part: slice) -> NDArray[np.bool_]:
        """Which rows of a part have an embedding."""
        return np.asarray(self._arrays["valid"][part], dtype=np.bool_)

    def reopen(self) -> None:
        """Count chunks with windows that could not be read as not written, so that they are tried again."""
        with store_errors(self._path):
            unreadable = np.flatnonzero(magnification_in(self._group).unreadable()) // self.chunk_rows
            if len(unreadable):
                self._done -= set(unreadable.tolist())
                self._group.update_attributes({"complete": False, "chunks_done": sorted(self._done)})

    def _widen(self, name: str) -> None:
        """Change an array to float32, chunk by chunk; a kill in the middle never leaves wrong rows.

        Rows are copied to a draft first, while the array stays as it is. Only while the draft takes its place
        are no chunks recorded: a kill in there costs them.
        """
        before = self._arrays[name]
        if before.dtype != np.float16:
            return
        draft = self._create(self._group, name + DRAFT, "float32", self.chunk_rows, self._floats()[name])
        for index in sorted(self._done):
            rows = self.rows(index)
            where = slice(rows.start, rows.stop)
            draft[where] = np.asarray(before[where], dtype=np.float32)
        self._group.attrs["chunks_done"] = []
        shutil.rmtree(self._folder / name)
        (self._folder / (name + DRAFT)).rename(self._folder / name)
        self._arrays[name] = self._opened(name)
        self._group.attrs["chunks_done"] = sorted(self._done)

    def _remove_drafts(self) -> None:
        """Remove what a process left that was killed while it widened an array."""
        for name in self._floats():
            shutil.rmtree(self._folder / (name + DRAFT), ignore_errors=True)

    def _opened(self, key: str) -> zarr.Array[Any]:
        # Every chunk is written, also one without content: what is missing later is then known to be lost.
        with zarr.config.set({"array.write_empty_chunks": True}):
            return opened(self._group, key)


def _undamaged(parent: zarr.Group, key: str) -> zarr.Group | None:
    """A magnification's group; None where it is damaged as a whole, so that nothing of it counts."""
    try:
        group = subgroup(parent, key)
        if group is not None and "recipe" in group.attrs:
            magnification_in(group)
    except StoreError as error:
        said = error.found if isinstance(error, DamagedSlideError) else str(error)
        _LOG.warning("%s; it is made anew", printable(said))
        return None
    return group
