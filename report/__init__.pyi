__all__ = [
    "ONE_SCALE",
    "PAGE",
    "PANEL_IN",
    "PER_SLIDE",
    "CohortCheck",
    "FigureOptions",
    "RunFigures",
    "Summary",
    "about",
    "best_genes",
    "check_cohort",
    "comparison_figure",
    "draw_ablations",
    "draw_comparison",
    "draw_gene_figures",
    "draw_genes",
    "draw_page",
    "draw_prototypes",
    "draw_run",
    "expression_map",
    "fits_in_memory",
    "how_chosen",
    "map_of",
    "notes",
    "number",
    "prototypes_map",
    "report_results",
    "report_run",
    "summarise_genes",
    "summary_of_comparison",
    "summary_of_evaluation",
    "summary_of_run",
    "table_of",
    "with_interval",
    "write_markdown",
]

from .ablations import draw_ablations
from .cohort_check import CohortCheck, check_cohort, summarise_genes
from .comparison import about, notes, table_of, write_markdown
from .comparison_plots import comparison_figure, draw_comparison, draw_genes
from .gene_figure import draw_gene_figures
from .maps import ONE_SCALE, PANEL_IN, best_genes, expression_map
from .prototype_figure import draw_prototypes, prototypes_map
from .run_page import PAGE, draw_page, fits_in_memory, report_results
from .run_report import FigureOptions, RunFigures, draw_run, how_chosen, map_of, report_run
from .summary import (
    PER_SLIDE,
    Summary,
    number,
    summary_of_comparison,
    summary_of_evaluation,
    summary_of_run,
    with_interval,
)
