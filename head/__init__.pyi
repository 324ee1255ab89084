__all__ = [
    "HEADS",
    "head_method",
    "parse_settings",
    "prototype_settings",
]

from .dataset import prototype_settings
from .interface import parse_settings
from .registry import HEADS, head_method
