__all__ = [
    "COMPARE_CSV",
    "COMPARE_JSON",
    "CompareRequest",
    "EvaluateRequest",
    "compare",
    "evaluate",
    "make_heads",
    "row_genes",
]

from .ablations import evaluate
from .comparison import COMPARE_CSV, COMPARE_JSON, compare, row_genes
from .comparison_rows import CompareRequest, make_heads
from .folder import EvaluateRequest
