__all__ = [
    "COMPARE_CSV",
    "COMPARE_JSON",
    "FIRST_ENCODER",
    "FIRST_MAGNIFICATIONS",
    "REFERENCES",
    "REQUEST",
    "AblationRow",
    "CommonProtocol",
    "CompareReport",
    "CompareRequest",
    "ComparisonResult",
    "EvaluateReport",
    "EvaluateRequest",
    "EvaluationMetrics",
    "FoldsProtocol",
    "RowResult",
    "compare",
    "evaluate",
    "make_heads",
    "read_comparison",
    "read_evaluation",
    "row_genes",
]

from .ablations import EvaluateReport, evaluate
from .comparison import COMPARE_CSV, COMPARE_JSON, CompareReport, compare, row_genes
from .comparison_rows import CompareRequest, make_heads
from .folder import REQUEST, EvaluateRequest
from .results import (
    FIRST_ENCODER,
    FIRST_MAGNIFICATIONS,
    REFERENCES,
    AblationRow,
    CommonProtocol,
    ComparisonResult,
    EvaluationMetrics,
    FoldsProtocol,
    RowResult,
    read_comparison,
    read_evaluation,
)
