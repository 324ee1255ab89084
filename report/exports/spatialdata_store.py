"""Predictions as SpatialData: an image, the spots as circles, and the table that annotates them."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np

from mmap_st.errors import MissingDependencyError
from mmap_st.head.runs import UNS
from mmap_st.report.run_report import map_of

if TYPE_CHECKING:
    import anndata

#: Elements of a store. The image is the slide's thumbnail.
IMAGE, SPOTS, TABLE = "image", "spots", "expression"
#: Its coordinate systems: pixels of the image at full resolution; and micrometres, where the scale is known.
PIXELS, MICROMETRES = "global", "micrometers"
_REGION, _INSTANCE = "region", "instance_id"


def check_spatialdata() -> None:
    """Import spatialdata, before work whose results it is to write.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    try:
        import spatialdata  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            "--format spatialdata needs the package spatialdata: `pip install mmap-st[spatialdata]`."
        ) from error


def write_spatialdata(path: Path, table: anndata.AnnData, diameter_px: float) -> None:
    """Write a prediction as a SpatialData store that is there whole or not at all.

    Parameters
    ----------
    path
        Of the store (.zarr); nothing is there.
    table
        The prediction; its layers and columns are kept. Pixels of its image are those of ``uns["spatial"]``.
    diameter_px
        Width of a spot.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    draft = Path(mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries about each other
            _spatial_data(table, diameter_px).write(draft / "store.zarr")
        (draft / "store.zarr").replace(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _spatial_data(table: anndata.AnnData, diameter_px: float) -> Any:
    from spatialdata import SpatialData
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity, Scale, Sequence

    mpp = table.uns[UNS].get("source_mpp")
    systems: dict[str, Any] = {PIXELS: Identity()}
    if mpp is not None:
        systems[MICROMETRES] = Scale([float(mpp)] * 2, axes=("x", "y"))
    spots = ShapesModel.parse(
        np.asarray(table.obsm["spatial"], np.float64),
        geometry=0,
        radius=diameter_px / 2,
        index=np.arange(len(table)),
        transformations=systems,
    )
    images = {}
    background = map_of(table).background
    if background is not None:
        to_pixels = Scale([1 / background.scale] * 2, axes=("x", "y"))
        of_image = {name: Sequence([to_pixels, system]) for name, system in systems.items()}
        pixels = np.ascontiguousarray(background.pixels.transpose(2, 0, 1))
        images[IMAGE] = Image2DModel.parse(
            pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=of_image
        )
    annotating = table.copy()
    annotating.uns.pop("spatial", None)  # the image is an element of its own
    annotating.obs[_REGION] = SPOTS
    annotating.obs[_REGION] = annotating.obs[_REGION].astype("category")
    annotating.obs[_INSTANCE] = np.arange(len(table))
    parsed = TableModel.parse(annotating, region=SPOTS, region_key=_REGION, instance_key=_INSTANCE)
    return SpatialData(images=images, shapes={SPOTS: spots}, tables={TABLE: parsed})
