__all__ = [
    "CohortCheck",
    "about",
    "check_cohort",
    "draw_ablations",
    "draw_comparison",
    "draw_genes",
    "notes",
    "report_run",
    "summarise_genes",
    "table_of",
    "write_markdown",
]

from .ablations import draw_ablations
from .cohort_check import CohortCheck, check_cohort, summarise_genes
from .comparison import about, draw_comparison, draw_genes, notes, table_of, write_markdown
from .run_report import report_run
