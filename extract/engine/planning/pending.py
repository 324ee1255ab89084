"""Slides whose images are on servers: they are planned from their copies, when their turn comes.

What a slide's image was when it was embedded is recorded with its embeddings: where it was fetched from, and
the server's word for its version. While the server says the same, all is known of it that a plan needs, and a
slide that is complete is not fetched again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from mmap_st.data import CohortSlide
from mmap_st.data.readers import read_spots
from mmap_st.errors import SlideUnchangedError
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.engine.planning.placement import place_spots_by
from mmap_st.extract.engine.planning.plan import PlanRequest, SlidePlan, plan_placed, plan_slide
from mmap_st.extract.slides import default_stage, fetched, image_files, staged
from mmap_st.extract.store import FeatureStore, encode_name, undamaged_slide
from mmap_st.extract.windows import mpp_key
from mmap_st.fetching import RemoteFiles
from mmap_st.files import absolute_place
from mmap_st.urls import Place, Url

#: Attribute of a magnification: where its image was fetched from, and which version it was.
IMAGE_FROM = "image_from"
#: About what a window of 224 px takes in a compressed slide, of which nothing else is known.
_WINDOW_BYTES = 1 << 16


@dataclass(frozen=True)
class PendingSlide:
    """One slide to fetch, to plan and to embed.

    Attributes
    ----------
    row
        Of the cohort.
    request
        What is asked of it.
    windows
        About how many there are: by its spot table, else by the bytes of its image.
    """

    row: CohortSlide
    request: PlanRequest
    windows: int

    @property
    def name(self) -> str:
        """Of the slide."""
        return self.row.slide

    @property
    def image(self) -> Url:
        """Of its image."""
        assert isinstance(self.row.image, Url)
        return self.row.image

    def absolute(self) -> PendingSlide:
        """The same for a process that has another working directory."""
        spots, counts = self.row.spots, self.row.counts
        row = replace(
            self.row,
            spots=None if spots is None else absolute_place(spots),
            counts=None if counts is None else absolute_place(counts),
        )
        return replace(self, row=row)

    def planned(self, copy: Path, store: FeatureStore) -> SlidePlan:
        """What is to be done, by the copy of its image.

        Raises
        ------
        SlideError
            If it cannot be used; the reason is for the user.
        """
        plan = plan_slide(replace(self.row, image=copy), store, self.request)
        return replace(plan, image=self.image)

    def again(self, store: FeatureStore) -> Planned:
        """The same, with what the store and the server say now."""
        return plan_remote(self.row, store, self.request)


#: A slide whose plan is made, or is made when it is opened.
Planned: TypeAlias = SlidePlan | PendingSlide


def plan_remote(row: CohortSlide, store: FeatureStore, request: PlanRequest) -> Planned:
    """Plan a slide whose image is on a server, as far as that is possible without the image.

    Raises
    ------
    SlideError
        If it cannot be used; the reason is for the user.
    """
    assert isinstance(row.image, Url)
    files = image_files(row.image)
    if (known := _known_image(store, row.slide, files)) is not None:
        size, mpp, fingerprint = known
        placed = place_spots_by(size, mpp, row, store, request.grid)
        if placed is not None:
            return plan_placed(row, placed, fingerprint, store, request)
    windows = _estimate(row, store, files) * len(request.mpps)
    return PendingSlide(row, request, windows)


def _estimate(row: CohortSlide, store: FeatureStore, files: RemoteFiles) -> int:
    """About how many spots a slide has; a spot table that cannot be read fails it before it is fetched."""
    if row.spots is not None:
        return len(read_spots(row))
    stored = undamaged_slide(store, row.slide)
    return len(stored) if stored is not None and stored.has_spots() else files.size // _WINDOW_BYTES + 1


def origin(files: RemoteFiles, mpp: float | None) -> dict[str, object]:
    """What is recorded of an image that was fetched; `mpp` is what its metadata say."""
    return {"url": str(files.url), "version": files.version, "bytes": files.size, "mpp": mpp}


def _known_image(
    store: FeatureStore, name: str, files: RemoteFiles
) -> tuple[tuple[int, int], float | None, Mapping[str, object]] | None:
    """Size, scale and fingerprint of an image that was embedded as it is now on its server; else None."""
    slide = undamaged_slide(store, name)
    for encoder in () if slide is None else slide.undamaged_encoders():
        for found in slide.undamaged(encoder) if slide is not None else ():
            recorded, image = found.group.attrs.get(IMAGE_FROM), found.recipe.get("image")
            if not found.complete or not isinstance(recorded, Mapping) or not isinstance(image, Mapping):
                continue
            stated, size = recorded.get("mpp"), image.get("size_px")
            mpp = float(stated) if isinstance(stated, float | int) else None
            if recorded == origin(files, mpp) and isinstance(size, list) and len(size) == 2:
                return (int(size[0]), int(size[1])), mpp, image
    return None


def at_hand(
    image: Place, options: ExtractOptions, resources: ExitStack, stop: Callable[[], bool]
) -> tuple[Path, RemoteFiles | None]:
    """An image as it is read, on this machine; and what it was fetched from, where it was."""
    if isinstance(image, Url):
        files = image_files(image)
        return resources.enter_context(fetched(files, options.stage or default_stage(), stop)), files
    if options.stage is None:
        return image, None
    return resources.enter_context(staged(image, options.stage, stop)), None


def unchanged_slide(
    store: FeatureStore, plan: SlidePlan, encoder: str, mpps: Sequence[float], found: dict[str, object]
) -> SlideUnchangedError:
    """What to raise where an image that was fetched is that of what the store has; next time it is known."""
    if not store.read_only:  # what is published stays as it is
        for mpp in mpps:
            group = store.require_group(plan.name, encode_name(encoder), mpp_key(mpp))
            group.update_attributes({IMAGE_FROM: found})
    unchanged = SlideUnchangedError("all that is wanted of it is in the store already.")
    unchanged.gridded = plan.made_by is not None
    return unchanged
