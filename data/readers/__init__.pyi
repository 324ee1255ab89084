__all__ = [
    "IMAGE_SUFFIXES",
    "READERS",
    "CohortSource",
    "as_cohort",
    "is_slide_folder",
    "local_table",
    "open_cohort",
    "read_counts",
    "read_spot_table",
    "read_spots",
    "rebinned",
    "stem_of",
    "without_suffix",
]

from .finding import IMAGE_SUFFIXES, is_slide_folder, stem_of, without_suffix
from .registry import READERS, CohortSource, as_cohort, open_cohort, read_counts, read_spots, rebinned
from .remote import local_table
from .table import read_spot_table
