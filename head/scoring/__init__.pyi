__all__ = [
    "FEWEST_FOR_TEST",
    "LEVEL",
    "Spread",
    "coverage",
    "difference",
    "fit_spread",
    "gene_table",
    "holm",
    "interval_over_patients",
    "is_spread",
    "most_variable",
    "pearson_per_gene",
    "pooled_errors",
    "region_agreement",
    "saved_spread",
    "slide_metrics",
    "summarise",
]

from .metrics import (
    gene_table,
    most_variable,
    pearson_per_gene,
    pooled_errors,
    region_agreement,
    slide_metrics,
    summarise,
)
from .statistics import FEWEST_FOR_TEST, difference, holm, interval_over_patients
from .uncertainty import LEVEL, Spread, coverage, fit_spread, is_spread, saved_spread
