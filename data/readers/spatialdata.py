"""SpatialData stores (.zarr): one slide for each region of shapes that a table annotates.

They are read by the package spatialdata (the extra of that name). A slide's `spots` are
``STORE/shapes/REGION``, its `counts` ``STORE/tables/TABLE`` and its `image` ``STORE/images/IMAGE``.
Positions are the centres of the shapes, mapped to pixels of the image through a coordinate system that both
share.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.cohort import CohortSlide, LocalSlide
from mmap_st.data.counts import Counts
from mmap_st.data.readers.annotated import SpotTable, counts_of, spots_of, table_of
from mmap_st.data.spots import Spots, reading, some
from mmap_st.errors import CohortError, CountsError, MissingDependencyError, SlideError, SpotsError


def find_slides(path: Path) -> tuple[CohortSlide, ...]:
    """Every region of a store that a table annotates; or those of all stores in a folder.

    Raises
    ------
    CohortError
        If there is no store, or none of its tables annotates shapes.
    """
    stores = [path] if _is_store(path) else sorted(p for p in path.glob("*.zarr") if _is_store(p))
    if not stores:
        raise CohortError(f"{path} is neither a SpatialData store nor a folder of stores (.zarr).")
    slides = []
    for store in stores:
        try:
            found = _regions(store)
        except SlideError as error:
            raise CohortError(str(error)) from error
        for region, table, image in found:
            alone = len(found) == 1
            slides.append(
                CohortSlide(
                    slide=store.stem if alone else f"{store.stem}_{region}",
                    image=None if image is None else store / "images" / image,
                    spots=store / "shapes" / region,
                    counts=store / "tables" / table,
                    reader="spatialdata",
                )
            )
    if not slides:
        raise CohortError(f"{path} has no table that annotates shapes.")
    return tuple(slides)


def read_spots(slide: LocalSlide) -> Spots:
    """Spots of a region, in the order of its table, in pixels of the slide's image."""
    assert slide.spots is not None
    store, region = slide.spots.parent.parent, slide.spots.name
    if slide.counts is None:
        raise SpotsError(
            f"{slide.spots} needs the table that annotates it; fill in the cohort's column counts."
        )
    with reading(store, "a SpatialData store", SpotsError):
        data = _open(store)
        table, rows = _rows_of(data, slide.counts.name, region)
        centres = _centres(data, region, None if slide.image is None else slide.image.name)
        keys = [key for key in rows if key in centres]
        if not keys:
            raise SpotsError(f"{store}: no row of {slide.counts.name} belongs to a shape of {region}.")
        xy = np.array([centres[key] for key in keys])
        kept = np.isin(np.asarray(rows, dtype=object), np.asarray(keys, dtype=object))
        spots = spots_of(replace(table, obs=table.obs[kept], spatial=xy, matrices=()), slide.where)
        return replace(
            spots,
            positions_without_counts=len(centres) - len(keys),
            counts_without_position=len(rows) - len(keys),
        )


def read_counts(slide: LocalSlide) -> Counts:
    """Counts of a region, in the order of its table."""
    assert slide.counts is not None
    store = slide.counts.parent.parent
    if slide.spots is None:
        raise CountsError(f"{slide.counts}: name the region in the cohort's column spots.")
    with reading(store, "a SpatialData store", CountsError):
        table, _ = _rows_of(_open(store), slide.counts.name, slide.spots.name)
        return counts_of(table, slide.values or "counts", slide.where)


def _is_store(path: Path) -> bool:
    return (
        path.is_dir()
        and (path / "tables").is_dir()
        and any((path / n).is_file() for n in ("zarr.json", ".zgroup"))
    )


def _open(store: Path) -> Any:
    try:
        import spatialdata
    except ImportError as error:
        raise MissingDependencyError(
            "reading SpatialData stores needs spatialdata, which is not installed:"
            " pip install 'mmap-st[spatialdata]'."
        ) from error
    return spatialdata.read_zarr(store, selection=("tables", "shapes", "images"))


def _regions(store: Path) -> list[tuple[str, str, str | None]]:
    """Name, table and image of every annotated region."""
    with reading(store, "a SpatialData store", SpotsError):
        data = _open(store)
        found = []
        for name, table in data.tables.items():
            about = table.uns.get("spatialdata_attrs", {})
            regions = about.get("region") or []
            for region in [regions] if isinstance(regions, str) else list(regions):
                if region in data.shapes:
                    found += [(str(region), str(name), _image_of(data, region))]
        return found


def _image_of(data: Any, region: str) -> str | None:
    """The largest RGB image that shares a coordinate system with a region; other channels are not H&E."""
    sizes = {
        name: int(finest.sizes["x"]) * int(finest.sizes["y"])
        for name, image in data.images.items()
        for finest in (_finest(image),)
        if _is_rgb(finest) and _shared_systems(data.shapes[region], image)
    }
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _finest(image: Any) -> Any:
    from spatialdata import get_pyramid_levels

    return next(iter(get_pyramid_levels(image))) if hasattr(image, "children") else image


def _is_rgb(image: Any) -> bool:
    return image.dtype == np.uint8 and int(image.sizes.get("c", 1)) in (3, 4)


def _shared_systems(shapes: Any, image: Any) -> list[str]:
    from spatialdata.transformations import get_transformation

    of_shapes, of_image = (get_transformation(element, get_all=True) for element in (shapes, image))
    return sorted(set(of_shapes) & set(of_image))


def _rows_of(data: Any, name: str, region: str) -> tuple[SpotTable, list[Any]]:
    """The part of a table that annotates a region, and the shape that each of its rows belongs to."""
    if name not in data.tables:
        raise CountsError(f"{data.path} has no table {name}; it has {some(list(data.tables))}.")
    table = data.tables[name]
    about = table.uns.get("spatialdata_attrs", {})
    region_key, instance_key = about.get("region_key"), about.get("instance_key")
    if region_key not in table.obs or instance_key not in table.obs:
        raise CountsError(f"{data.path}, table {name} does not say which shapes its rows belong to.")
    part = table[(table.obs[region_key].astype(str) == region).to_numpy()]
    return table_of(part, f"{data.path}, table {name}"), part.obs[instance_key].tolist()


def _centres(data: Any, region: str, image: str | None) -> dict[Any, NDArray[np.float64]]:
    """Centre of each shape, in pixels of the image; without one, in the shapes' own system."""
    from spatialdata import get_centroids
    from spatialdata.transformations import get_transformation

    if region not in data.shapes:
        raise SpotsError(f"{data.path} has no shapes {region}; it has {some(list(data.shapes))}.")
    shapes = data.shapes[region]
    system = next(iter(get_transformation(shapes, get_all=True)))
    to_pixels = np.eye(3)
    if image in data.images:
        shared = _shared_systems(shapes, data.images[image])
        if not shared:
            raise SpotsError(f"{data.path}: {region} and {image} have no coordinate system in common.")
        system = shared[0]
        to_system = get_transformation(data.images[image], system).to_affine_matrix(("x", "y"), ("x", "y"))
        to_pixels = np.linalg.inv(np.asarray(to_system, dtype=np.float64))
    points = get_centroids(shapes, coordinate_system=system).compute()
    xy = points[["x", "y"]].to_numpy(dtype=np.float64)
    placed = (np.column_stack([xy, np.ones(len(xy))]) @ to_pixels.T)[:, :2]
    return dict(zip(points.index.tolist(), placed, strict=True))
