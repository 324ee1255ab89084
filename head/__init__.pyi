__all__ = [
    "HEADS",
    "FittedHead",
    "HeadMethod",
    "HeadSetting",
    "HeadSlide",
    "HeldOut",
    "ListedHead",
    "Shape",
    "SpatialNeighbours",
    "Tensors",
    "Validation",
    "best_of",
    "counts_of_spots",
    "counts_on_panel",
    "cross_fit",
    "head_method",
    "listed_heads",
    "look_at_head",
    "mean_of_neighbours",
    "nearest",
    "parse_settings",
    "prototype_settings",
    "register",
    "settings_of",
    "spot_pitch",
    "subsample_rows",
]

from .dataset import counts_of_spots, counts_on_panel, prototype_settings
from .inputs import HeadSlide, subsample_rows
from .interface import (
    FittedHead,
    HeadMethod,
    HeldOut,
    Shape,
    Tensors,
    Validation,
    best_of,
    cross_fit,
    parse_settings,
)
from .listing import ListedHead, listed_heads, look_at_head
from .neighbourhood import SpatialNeighbours, mean_of_neighbours, nearest, spot_pitch
from .registry import HEADS, head_method, register, settings_of
from .settings import HeadSetting
