"""What an extraction will do to each slide, and by which recipes, settled before any work begins."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmap_st.data import CohortSlide, Spots
from mmap_st.errors import (
    DamagedSlideError,
    RecipeMismatchError,
    ResolutionError,
    SlideRecipeError,
    StoreError,
    counted,
    printable,
)
from mmap_st.extract.encoders import Encoder
from mmap_st.extract.engine.planning.placement import Placement, place_spots
from mmap_st.extract.slides import METHOD, GridRequest, SourceMpp, slide_files
from mmap_st.extract.store import (
    FeatureStore,
    Magnification,
    Recipe,
    SlideInfo,
    StoredSlide,
    check_spots,
    differences,
    encoder_of,
    is_imported,
    mismatch_sentence,
    run_part,
    sha256_of_spots,
    slide_part,
    undamaged_slide,
    undamaged_slides,
)
from mmap_st.extract.windows import FILL, MOST_ENLARGED, RESAMPLING, finest_mpp, mpp_key
from mmap_st.files import absolute_place, sha256_of_json
from mmap_st.urls import Place

#: Raised only when the numbers change.
ALGORITHM_VERSION = 3

_MIB = 1 << 20


def run_recipe(encoder: Encoder, tissue_min: float = 0.0) -> Recipe:
    """The part of a recipe that all slides of a run share.

    Windows with a smaller share of tissue than `tissue_min` are left out.
    """
    return {
        "encoder": encoder.spec.recipe(),
        "weights_sha256": encoder.weights_sha256,
        "precision": encoder.precision,
        "window": {"resampling": RESAMPLING, "fill": FILL},
        "algorithm_version": ALGORITHM_VERSION,
        **({"tokens": encoder.tokens} if encoder.tokens else {}),
        **({"tissue_min": tissue_min, "tissue_method": METHOD} if tissue_min else {}),
    }


def slide_recipes(
    shared: Recipe,
    mpps: Sequence[float],
    source_mpp: float,
    spots: Spots,
    image: Mapping[str, object],
) -> dict[float, Recipe]:
    """The whole recipe of every magnification of one slide, by mpp; spots are hashed once.

    `image` is what `image_fingerprint` says.
    """
    of_slide = {
        "source_mpp": f"{source_mpp:.6g}",
        "spots_sha256": sha256_of_spots(spots),
        "image": dict(image),
    }
    return {mpp: {**shared, "mpp": mpp, **of_slide} for mpp in mpps}


def image_fingerprint(path: Path, size: tuple[int, int]) -> dict[str, object]:
    """Size in pixels and bytes, and sha256 of the first and last MiB: cheap even for huge slides.

    An image that is a folder (DICOM, OME-Zarr) is hashed by the names and sizes of its files, and by the
    first and last MiB of its largest.
    """
    files = slide_files(path)
    sizes = [file.stat().st_size for file in files]
    largest = files[sizes.index(max(sizes))]
    with largest.open("rb") as file:
        first = file.read(_MIB)
        file.seek(max(max(sizes) - _MIB, 0))
        last = file.read(_MIB)
    listing = [[file.relative_to(path).as_posix(), n] for file, n in zip(files, sizes, strict=True)]
    return {
        "size_px": list(size),
        "bytes": sum(sizes),
        "sha256_first_mib": hashlib.sha256(first).hexdigest(),
        "sha256_last_mib": hashlib.sha256(last).hexdigest(),
        **({"sha256_of_files": sha256_of_json(listing)} if path.is_dir() else {}),
    }


_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlidePlan:
    """One slide to embed.

    Attributes
    ----------
    info
        What the store will say of it.
    image
        Its file; or the URL of one, which is fetched when the slide is opened.
    spots
        Where windows are centred.
    source
        Micrometres per level-0 pixel.
    recipes
        Recipe of each magnification that is not complete, finest first.
    kept
        Number of magnifications that are complete already.
    made_by
        How a grid of spots was placed; None where the spots are those of its spot table.
    """

    info: SlideInfo
    image: Place
    spots: Spots
    source: SourceMpp
    recipes: dict[float, Recipe]
    kept: int
    made_by: dict[str, object] | None = None

    @property
    def name(self) -> str:
        """Of the slide."""
        return self.info.name

    def absolute(self) -> SlidePlan:
        """The same for a process that has another working directory."""
        return replace(self, image=absolute_place(self.image))

    @property
    def windows(self) -> int:
        """Windows that are not in the store as complete magnifications."""
        return len(self.spots) * len(self.recipes)


@dataclass(frozen=True)
class PlanRequest:
    """What is asked of every slide of a run.

    Attributes
    ----------
    shared
        What all recipes of the run share.
    mpps
        Magnifications that are wanted, finest first.
    overwrite
        Whether what another recipe made is replaced.
    grid
        Spots for slides without any; None: these are skipped.
    enlarge
        Whether windows may be made of fewer pixels than a quarter of theirs along each side.
    """

    shared: Recipe
    mpps: tuple[float, ...]
    overwrite: bool = False
    grid: GridRequest | None = None
    enlarge: bool = False


def plan_slide(row: CohortSlide, store: FeatureStore, request: PlanRequest) -> SlidePlan:
    """Check one slide's inputs and find what of it is still to be done.

    Raises
    ------
    SlideError
        If it cannot be used; the reason is for the user.
    """
    placed = place_spots(row, store, request.grid)
    assert isinstance(row.image, Path)
    image = image_fingerprint(row.image, placed.size_px)
    return plan_placed(row, placed, image, store, request)


def plan_placed(
    row: CohortSlide,
    placed: Placement,
    image: Mapping[str, object],
    store: FeatureStore,
    request: PlanRequest,
) -> SlidePlan:
    """Find what is still to be done of a slide whose spots are placed; `image` is its fingerprint.

    Raises
    ------
    SlideError
        If it cannot be used; the reason is for the user.
    """
    assert row.image is not None
    size, spots, source = placed.size_px, placed.spots, placed.source
    info = SlideInfo(row.slide, row.patient, row.image.name, size, source.mpp, source.source)
    encoder = encoder_of(request.shared)
    wanted = slide_recipes(request.shared, request.mpps, source.mpp, spots, image)
    slide = _stored_slide(store, row.slide, spots)
    stored = {}
    if slide is not None:
        _check_one_picture(slide, encoder, wanted, overwrite=request.overwrite)
        stored = {m.mpp: m for m in slide.undamaged(encoder)}
    recipes: dict[float, Recipe] = {}
    for mpp, recipe in wanted.items():
        there = stored.get(mpp)
        different = differences(there.recipe, recipe) if there else []
        if different and not request.overwrite:
            raise SlideRecipeError(mismatch_sentence(encoder, mpp, different))
        if (
            different
            or there is None
            or not there.complete
            or not there.is_sound()
            or (request.overwrite and there.unreadable().any())
        ):
            recipes[mpp] = recipe
    if recipes and not request.enlarge:
        _check_enlargement(min(recipes), source)
    kept = len(request.mpps) - len(recipes)
    return SlidePlan(info, row.image, spots, source, recipes, kept, placed.made_by)


def _stored_slide(store: FeatureStore, name: str, spots: Spots) -> StoredSlide | None:
    """A slide of the store, if it is there and these are its spots; what is damaged of it is made again."""
    slide = undamaged_slide(store, name)
    try:
        if slide is not None and slide.has_spots():
            check_spots(store, name, spots)
    except DamagedSlideError as error:
        _LOG.warning("slide %s: %s", printable(name), error)
        return None
    return slide


def _check_enlargement(finest: float, source: SourceMpp) -> None:
    """Refuse windows that would be a blur: of far fewer pixels than the encoder is shown.

    Raises
    ------
    ResolutionError
        Saying how coarse the image is.
    """
    times = source.mpp / finest
    if times > MOST_ENLARGED * (1 + 1e-6):
        raise ResolutionError(
            f"windows at {mpp_key(finest)} um/px would be enlarged {times:.2g} times from its image of"
            f" {source.mpp:.4g} um/px ({source.source}): name its full-resolution image, take windows of at"
            f" least {finest_mpp(source.mpp):g} um/px, or give --enlarge."
        )


def _check_one_picture(
    slide: StoredSlide, encoder: str, wanted: Mapping[float, Recipe], *, overwrite: bool
) -> None:
    """Refuse to put windows of another image, mpp or spots next to those that stay in the store."""
    new = next(iter(wanted.values()))
    for name in slide.undamaged_encoders():
        for magnification in slide.undamaged(name):
            stored = magnification.recipe
            replaced = overwrite and name == encoder and magnification.mpp in wanted
            if is_imported(stored):
                # Made from an image that is not known here; allowed, but only under another encoder's name.
                different = differences(stored, new) if name == encoder else []
            else:
                different = differences(slide_part(stored), slide_part(new))
            if different and not replaced:
                raise SlideRecipeError(mismatch_sentence(name, magnification.mpp, different))


def stored_precision(store: FeatureStore, encoder: str) -> str | None:
    """Precision of what was extracted into the store with an encoder."""
    for _, found in stored_magnifications(store, encoder):
        if not is_imported(found.recipe):
            return str(found.recipe["precision"])
    return None


def stored_tokens(store: FeatureStore, encoder: str) -> int:
    """Side of the grid of tokens that the store has of an encoder; 0 where it has none."""
    for _, found in stored_magnifications(store, encoder):
        tokens = found.recipe.get("tokens", 0)
        return tokens if isinstance(tokens, int) else 0
    return 0


def check_run_recipe(store: FeatureStore, shared: Recipe) -> None:
    """Refuse a run whose encoder, weights or precision differ from what the store has of that encoder.

    Raises
    ------
    RecipeMismatchError
        Naming the differences.
    """
    encoder = encoder_of(shared)
    for slide, found in stored_magnifications(store, encoder):
        different = differences(run_part(found.recipe), shared)
        if different:
            raise RecipeMismatchError(
                f"{store.path}, slide {slide}: {mismatch_sentence(encoder, found.mpp, different)}"
            )


def check_width(
    store: FeatureStore, encoder: str, width: int, replaced: Container[tuple[str, float]] = ()
) -> None:
    """Refuse embeddings of another length than the store has of that encoder: a head takes one length.

    Parameters
    ----------
    replaced
        Slides and mpps that are to be overwritten, whose length does not matter.

    Raises
    ------
    RecipeMismatchError
        Naming a slide that has another.
    """
    for slide, found in stored_magnifications(store, encoder):
        stored = stored_width(found)
        if stored is not None and stored != width and (slide, found.mpp) not in replaced:
            raise RecipeMismatchError(width_sentence(encoder, width, slide, found.mpp, stored))


def stored_width(magnification: Magnification) -> int | None:
    """Length of an embedding; None where nothing tells it: arrays are missing, damaged, or not published."""
    try:
        return magnification.published_width if magnification.whole else None
    except StoreError:
        return None


def width_sentence(encoder: str, width: int, slide: str, mpp: float, stored: int) -> str:
    """The sentence for the case that embeddings of one encoder differ in length."""
    return (
        f"embeddings of {encoder} have {counted(width, 'dimension')} here and {stored} in the store (slide"
        f" {slide}, {mpp_key(mpp)} um/px); give another --encoder name, or use another store."
    )


def stored_magnifications(store: FeatureStore, encoder: str) -> Iterator[tuple[str, Magnification]]:
    """All that a store has of an encoder, complete or not, with the slide that it belongs to.

    What is damaged is skipped: whoever uses it learns why it cannot be used.
    """
    for slide in undamaged_slides(store):
        for magnification in slide.undamaged(encoder):
            yield slide.name, magnification
