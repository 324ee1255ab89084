__all__ = [
    "READERS",
    "CohortSource",
    "as_cohort",
    "open_cohort",
    "read_counts",
    "read_spot_table",
    "read_spots",
    "without_suffix",
]

from .finding import without_suffix
from .registry import READERS, CohortSource, as_cohort, open_cohort, read_counts, read_spots
from .table import read_spot_table
