"""The feature store, write side: slides with their spots, telemetry, versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

import mmap_st
from mmap_st.data.spots import Spots
from mmap_st.errors import SlideRecipeError
from mmap_st.extract.store import (
    FeatureStore,
    SlideInfo,
    encode_name,
    store_errors,
    subgroup,
)
from mmap_st.extract.windows import mpp_key

_SPOTS_CHUNK = 65_536


def write_slide(
    store: FeatureStore, info: SlideInfo, spots: Spots, made_by: Mapping[str, Any] | None = None
) -> None:
    """Add a slide and its spots, once; the caller holds the slide's lock.

    `made_by` is recorded with them: how a grid was laid, None for spots of a spot table.

    Raises
    ------
    SlideRecipeError
        If the store has the slide with other spots.
    """
    with store_errors(store.path):
        for leftover in (store.path / encode_name(info.name)).rglob("*.partial"):
            leftover.unlink(missing_ok=True)  # of a writer that was killed
        group = store.require_group(info.name)
        group.attrs.update(
            {
                "name": info.name,
                "patient": info.patient,
                "image": info.image,
                "size_px": list(info.size_px) if info.size_px else None,
                "source_mpp": info.source_mpp,
                "source_mpp_from": info.source_mpp_from,
            }
        )
        stored = subgroup(group, "spots")
        if stored is not None and stored.attrs.get("complete") is True:
            check_spots(store, info.name, spots)
            return
        stored = group.create_group("spots", overwrite=True)
        chunk = min(len(spots), _SPOTS_CHUNK)
        ids = stored.create_array("id", shape=(len(spots),), dtype=str, chunks=(chunk,))
        ids[:] = np.array(spots.ids, dtype=np.dtypes.StringDType())
        xy = stored.create_array("xy", shape=(len(spots), 2), dtype="float64", chunks=(chunk, 2))
        xy[:] = spots.xy
        if made_by is not None:
            stored.attrs["made_by"] = dict(made_by)
        stored.attrs["complete"] = True


def write_telemetry(store: FeatureStore, slide: str, encoder: str, figures: Mapping[str, Any]) -> None:
    """Record what the last run that embedded something measured of itself."""
    with store_errors(store.path):
        group = store.require_group(slide, encode_name(encoder))
        group.attrs["telemetry"] = dict(figures)


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
    """What is said where a recipe differs."""
    return (
        f"the store has {encoder} at {mpp_key(mpp)} um/px made with another recipe"
        f" ({'; '.join(different)}); use another store, or --overwrite to replace it."
    )


def versions() -> dict[str, str]:
    """What made the numbers: recorded beside recipes, and never compared."""
    packages = (
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
    return {
        "mmap-st": mmap_st.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
