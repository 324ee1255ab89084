"""The recipes of an extraction: of an encoder on a slide's windows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmap_st.data import Spots
from mmap_st.extract.encoders import Encoder
from mmap_st.extract.slides import METHOD, slide_files
from mmap_st.extract.store import Recipe, sha256_of_spots
from mmap_st.extract.windows import FILL, RESAMPLING
from mmap_st.files import sha256_of_json

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
    image: Path,
    size: tuple[int, int],
) -> dict[float, Recipe]:
    """The whole recipe of every magnification of one slide, by mpp; spots and image are hashed once."""
    of_slide = {
        "source_mpp": f"{source_mpp:.6g}",
        "spots_sha256": sha256_of_spots(spots),
        "image": image_fingerprint(image, size),
    }
    return {mpp: {**shared, "mpp": mpp, **of_slide} for mpp in mpps}


def image_fingerprint(path: Path, size: tuple[int, int]) -> dict[str, Any]:
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
