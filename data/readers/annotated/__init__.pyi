__all__ = [
    "POSITIONS",
    "VISIUM",
    "VISIUM_PITCH_UM",
    "Features",
    "GeneMatrix",
    "SpotTable",
    "count_layers",
    "counts_of",
    "features_of",
    "positive",
    "sections_of",
    "spots_of",
    "table_of",
]

from .features import Features, features_of
from .matrices import counts_of
from .parts import POSITIONS, GeneMatrix, SpotTable, count_layers, table_of
from .placed import VISIUM, VISIUM_PITCH_UM, positive, spots_of
from .sections import sections_of
