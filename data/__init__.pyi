__all__ = [
    "ALL",
    "AS_GIVEN",
    "BLOCK_ENTRIES",
    "DEFAULT_PANEL",
    "INTERSECTION",
    "LOG1P_COUNTS",
    "LOG10_PANEL",
    "LOG10_PANEL_SMOOTHED",
    "NORMALISATIONS",
    "VALUES",
    "Cohort",
    "CohortSlide",
    "Counts",
    "Fold",
    "Index",
    "Panel",
    "SlideSurvey",
    "Split",
    "Spots",
    "Targets",
    "choose_panel",
    "duplicates",
    "harmonise_genes",
    "in_any",
    "in_common",
    "inner_folds",
    "make_folds",
    "mpp_from_pitch",
    "naming",
    "normalisation_of",
    "open_hdf5",
    "pooled_moments",
    "read_labels",
    "resolve_split",
    "shared_patients",
    "some",
    "spatial_blocks",
    "survey_cohort",
    "survey_slide",
    "targets_from_counts",
    "write_cohort",
]

from .arrays import mpp_from_pitch
from .cohort import VALUES, Cohort, CohortSlide, write_cohort
from .counts import Counts, harmonise_genes, in_any, in_common, naming
from .hdf5 import open_hdf5
from .panel import DEFAULT_PANEL, INTERSECTION, Panel, choose_panel
from .splits import Fold, Split, inner_folds, make_folds, resolve_split, shared_patients, spatial_blocks
from .spots import Spots, duplicates, read_labels, some
from .survey import SlideSurvey, survey_cohort, survey_slide
from .targets import (
    ALL,
    AS_GIVEN,
    BLOCK_ENTRIES,
    LOG1P_COUNTS,
    LOG10_PANEL,
    LOG10_PANEL_SMOOTHED,
    NORMALISATIONS,
    Index,
    Targets,
    normalisation_of,
    pooled_moments,
    targets_from_counts,
)
