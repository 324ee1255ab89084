__all__ = [
    "Level",
    "OmeZarrSlide",
    "OpenSlideSlide",
    "PlainSlide",
    "TiffSlide",
    "dicom_series",
    "free_memory",
    "is_cut_off",
    "is_misread_by_openslide",
    "is_ome",
    "is_ome_zarr",
    "ome_mpp_of",
]

from .memory import free_memory
from .ome_zarr import OmeZarrSlide, is_ome_zarr
from .openslide_format import OpenSlideSlide, dicom_series, is_misread_by_openslide
from .pixels import Level
from .plain import PlainSlide
from .tiff import TiffSlide, is_ome, ome_mpp_of
from .whole import is_cut_off
