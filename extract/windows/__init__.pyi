__all__ = [
    "FILL",
    "MOST_ENLARGED",
    "RESAMPLING",
    "DeviceResizer",
    "Pixels",
    "ReadPlan",
    "WindowReader",
    "Windows",
    "canonical_mpp",
    "finest_mpp",
    "mpp_key",
    "parse_magnifications",
    "plan_reading",
    "share_in_bounds",
    "window_boxes",
]

from .device_resizing import DeviceResizer
from .geometry import (
    MOST_ENLARGED,
    canonical_mpp,
    finest_mpp,
    mpp_key,
    parse_magnifications,
    share_in_bounds,
    window_boxes,
)
from .read_plan import ReadPlan, plan_reading
from .reader import FILL, RESAMPLING, WindowReader, Windows
from .resizing import Pixels
