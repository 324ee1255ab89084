"""`mmap evaluate`: cross-validate one head, and where it is asked for, the head without each of its parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmap_st.data.cohort import Cohort
from mmap_st.extract.store import FeatureStore
from mmap_st.head.evaluation.ablations import chosen_variants, evaluate_ablations
from mmap_st.head.evaluation.cross_validation import EvaluateReport, cross_validate, read_cohort
from mmap_st.head.evaluation.folder import check_kind, evaluation_folder
from mmap_st.head.evaluation.request import EvaluateRequest


def evaluate(
    cohort: Cohort,
    store: FeatureStore,
    request: EvaluateRequest,
    out: Path,
    tell: Callable[[str], None] = lambda text: None,
) -> EvaluateReport:
    """Cross-validate a head and write RUN/; folds that a killed run finished are kept.

    Raises
    ------
    RequestError
        If nothing can be evaluated, or `out` holds something else.
    """
    report = EvaluateReport()
    with evaluation_folder(out):
        check_kind(out, comparison=False)
        ready = read_cohort(cohort, store, request, report, tell)
        variants = chosen_variants(request, ready.mpps) if request.ablate else []
        report.metrics = cross_validate(ready, request, out, report, tell)
        if variants:
            report.ablations = evaluate_ablations(ready, request, variants, report.metrics, out, report, tell)
    return report
