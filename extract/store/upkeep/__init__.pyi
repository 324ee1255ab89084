__all__ = [
    "Leftover",
    "MergeReport",
    "PackReport",
    "UpkeepReport",
    "merge_into",
    "pack_into",
    "remove_leftovers",
]

from .leftovers import Leftover, UpkeepReport, remove_leftovers
from .merging import MergeReport, merge_into
from .packing import PackReport, pack_into
