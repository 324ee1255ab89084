"""Whether what two stores hold is the same, or of one kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from mmap_st.errors import SlideRecipeError
from mmap_st.extract.store.integrity import DIGESTS, check_array
from mmap_st.extract.store.magnification import Magnification
from mmap_st.extract.store.nodes import array_in, read_array
from mmap_st.extract.store.reader import FeatureStore, undamaged_slides
from mmap_st.extract.store.recipe import Recipe, differences, encoder_of, run_part
from mmap_st.extract.windows import mpp_key


class StoredRuns:
    """What a store's embeddings of each encoder share: those of one run are of one kind."""

    def __init__(self, store: FeatureStore) -> None:
        self._path = store.path
        self._known: dict[str, tuple[Recipe, int]] = {}
        for slide in undamaged_slides(store):
            for encoder in slide.undamaged_encoders():
                for magnification in slide.undamaged(encoder):
                    if magnification.complete and magnification.whole:
                        self._known.setdefault(encoder, _kind(magnification))

    def check(self, magnification: Magnification) -> None:
        """Refuse a magnification of another kind than the store's of the same encoder; else it is one.

        Raises
        ------
        SlideRecipeError
            Saying what differs.
        """
        encoder, (recipe, width) = encoder_of(magnification.recipe), _kind(magnification)
        known_recipe, known_width = self._known.setdefault(encoder, (recipe, width))
        different = differences(known_recipe, recipe)
        if width != known_width:
            different.append(f"dimensions: stored {known_width}, asked {width}")
        if different:
            raise SlideRecipeError(
                f"{called(magnification)} was made otherwise than what {self._path} has of that encoder"
                f" ({'; '.join(different)}); merge it into another store."
            )


def _kind(magnification: Magnification) -> tuple[Recipe, int]:
    return run_part(magnification.recipe), magnification.width


def called(magnification: Magnification) -> str:
    """A magnification in words."""
    return f"{encoder_of(magnification.recipe)} at {mpp_key(magnification.mpp)} um/px"


def fingerprint(magnification: Magnification) -> str | None:
    """What its recipe says of the slide's image; None where it was imported."""
    image = magnification.recipe.get("image")
    return str(sorted(image.items())) if isinstance(image, Mapping) else None


def is_whole(magnification: Magnification) -> bool:
    """Whether all chunks of a magnification are there, by their check sums."""
    for name in magnification.arrays:
        check_array(magnification.group, name)
    return magnification.whole


def is_same(there: Magnification, other: Magnification) -> bool:
    """Whether two magnifications of one recipe hold the same: by their digests, else number by number."""
    digests = [one.group.attrs.get(DIGESTS) for one in (there, other)]
    if digests[0] is not None and digests[0] == digests[1]:
        return True
    for name in there.arrays:
        for one, two in zip(_blocks(there, name), _blocks(other, name), strict=True):
            if not np.array_equal(one, two, equal_nan=one.dtype.kind == "f"):
                return False
    return True


#: Rows that are compared at a time.
_ROWS = 1024


def _blocks(magnification: Magnification, name: str) -> Iterator[NDArray[Any]]:
    rows = array_in(magnification.group, name).shape[0]
    for start in range(0, rows, _ROWS):
        yield read_array(magnification.group, name, slice(start, start + _ROWS))


def made_from(prototypes: zarr.Group, complete: Mapping[str, str]) -> bool:
    """Whether a set of prototypes is of magnifications that are there."""
    settings = prototypes.attrs.get("settings")
    of = settings.get("embeddings") if isinstance(settings, Mapping) else None
    return isinstance(of, Mapping) and all(complete.get(mpp) == sha256 for mpp, sha256 in of.items())
