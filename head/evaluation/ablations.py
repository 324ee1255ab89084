"""Cross-validate one head, and on request the head without each of its parts, on the same folds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmap_st.data import Cohort
from mmap_st.errors import RequestError, WriteError, did_you_mean
from mmap_st.extract.engine import usable_cores
from mmap_st.extract.store import FeatureStore
from mmap_st.extract.windows import mpp_key
from mmap_st.head.dataset import encoders_of
from mmap_st.head.evaluation.aggregate import gain
from mmap_st.head.evaluation.cross_validation import ReadyCohort, RunNotes, cross_validate, prepare_cohort
from mmap_st.head.evaluation.folder import EvaluateRequest, check_kind, evaluation_folder
from mmap_st.head.evaluation.results import AblationRow, Differences, EvaluationMetrics
from mmap_st.head.mmap import MmapSettings
from mmap_st.head.runs import write_table, writing
from mmap_st.head.scoring import PER_SLIDE, Scores, write_json
from mmap_st.progress import ProgressCallback
from mmap_st.ray_cluster import connected_ray

ABLATIONS, ABLATIONS_CSV, ABLATIONS_JSON = "ablations", "ablations.csv", "ablations.json"
#: L and K that are tried, as in the paper's Figure 4, and K = 8.
SELECTED = (5, 10, 20, 40)
CLUSTERS = (8, 16, 32, 64, 128)
_CONTRASTIVE = 0.1


@dataclass(kw_only=True)
class EvaluateReport(RunNotes):
    """What was evaluated, and what was left out.

    Attributes
    ----------
    metrics
        Contents of metrics.json.
    ablations
        The head as it is and its variants, where they were requested.
    """

    metrics: EvaluationMetrics
    ablations: list[AblationRow] = field(default_factory=list)


@dataclass(frozen=True)
class Variant:
    """The head with one thing changed.

    Attributes
    ----------
    key
        Name of its folder.
    name
        For people.
    settings, mpps
        With the change.
    """

    key: str
    name: str
    settings: MmapSettings
    mpps: tuple[float, ...]


def variants(settings: MmapSettings, mpps: tuple[float, ...]) -> list[Variant]:
    """All ablations of a head; those that would change nothing are left out."""
    found = []

    def add(key: str, name: str, **changes: Any) -> None:
        changed = replace(settings, **changes)
        if changed != settings:
            found.append(Variant(key, name, changed, mpps))

    if len(mpps) > 1:
        found += [Variant(f"only-{mpp_key(mpp)}", f"{mpp:g} um/px alone", settings, (mpp,)) for mpp in mpps]
    add("no-prototypes", "no prototypes", prototypes="none")
    add("random", "random candidates", prototypes="random")
    if settings.prototypes in ("kmeans", "random"):
        for count in SELECTED:
            add(f"selected-{count}", f"L = {count}", selected=count)
        add("selected-adaptive", "L = K / 2", selected=None)
        for count in CLUSTERS:
            add(f"clusters-{count}", f"K = {count}", clusters=count)
        add("clusters-adaptive", "K by the number of spots", clusters=None)
    add("standardised", "embeddings standardised, not ranked", scaling="standard")
    add("one-strength", "one strength of ridge for all genes", strengths="one")
    add("unweighted", "spots not weighted", library_power=0.0)
    add("uncentred", "not centred within slides", centre=False)
    if not settings.blend:
        return found
    add("no-attention", "no learned attention", blend=0.0)
    add("learned", "learned prototypes", prototypes="learned")
    if len(mpps) > 1:
        add("concatenated", "magnifications concatenated", fusion="concatenate")
    if settings.contrastive:
        add("no-contrastive", "no contrastive loss", contrastive=0.0)
    else:
        add("contrastive", f"contrastive loss {_CONTRASTIVE:g}", contrastive=_CONTRASTIVE)
    return found


def chosen_variants(request: EvaluateRequest, mpps: tuple[float, ...]) -> list[Variant]:
    """The requested ablations.

    Raises
    ------
    RequestError
        If the head is not `mmap`, or a requested ablation is not one of its ablations.
    """
    settings = request.fit.settings
    if not isinstance(settings, MmapSettings):
        raise RequestError(f"--ablate is for the head mmap; {request.fit.method.name} has no ablations.")
    found = {variant.key: variant for variant in variants(settings, mpps)}
    if request.variants is None:
        return list(found.values())
    unknown = [key for key in request.variants if key not in found]
    if unknown:
        raise RequestError(
            f"--variants: there is no {unknown[0]!r}{did_you_mean(unknown[0], found)}; choose from"
            f" {', '.join(found)}."
        )
    return [found[key] for key in request.variants]


def evaluate_ablations(
    ready: ReadyCohort,
    request: EvaluateRequest,
    found: Sequence[Variant],
    whole: Scores,
    out: Path,
    notes: RunNotes,
    tell: ProgressCallback,
) -> list[AblationRow]:
    """Evaluate every variant on the folds of the whole head, and write ablations.csv and ablations.json.

    Parameters
    ----------
    found
        The variants.
    whole
        Scores of the head as it is.

    Returns
    -------
    One row per variant, the whole head first. Variants of which a fold failed are left out, and named in
    `notes`.
    """
    rows = [_row("whole", "as it is", request.fit.settings, whole, None)]
    lost = set(notes.failed_folds)
    for number, variant in enumerate(found, start=1):

        def tell_which(text: str, variant: Variant = variant, number: int = number) -> None:
            tell(f"{variant.name} ({number} of {len(found)}): {text}")

        fit = replace(request.fit, settings=variant.settings, baselines=False)
        folder = out / ABLATIONS / variant.key
        own = RunNotes()
        try:
            metrics = cross_validate(
                replace(ready, mpps=variant.mpps), replace(request, fit=fit), folder, own, tell_which
            )
        except WriteError:
            raise
        except RequestError as error:
            own.failed_folds = {"all": str(error)}
        if own.failed_folds.keys() - lost:
            # Scores over fewer folds would not compare.
            notes.failed_folds |= {f"{variant.name}: {k}": why for k, why in own.failed_folds.items()}
            continue
        difference = gain(metrics.test, whole, ready.patients)
        rows.append(_row(variant.key, variant.name, variant.settings, metrics.test, difference))
    with writing(out):
        write_json(out / ABLATIONS_JSON, rows)
        write_table(out / ABLATIONS_CSV, [_flat(row) for row in rows])
    return rows


def _row(
    key: str,
    name: str,
    settings: MmapSettings,
    scores: Scores,
    difference: Differences | None,
) -> AblationRow:
    metrics = {metric: scores.value(metric) for metric in (*PER_SLIDE, "pcc_pooled")}
    return AblationRow(key, name, settings.selected, **metrics, difference=difference)


def _flat(row: AblationRow) -> dict[str, object]:
    """A row of the CSV: differences next to the scores."""
    flat: dict[str, object] = {"variant": row.variant}
    flat |= {metric: row.value(metric) for metric in (*PER_SLIDE, "pcc_pooled")}
    for metric in PER_SLIDE:
        apart = row.difference[metric] if row.difference else None
        low, high = (apart.interval if apart else None) or (None, None)
        flat |= {
            f"{metric}_difference": apart.mean if apart else None,
            f"{metric}_low": low,
            f"{metric}_high": high,
            f"{metric}_p": apart.p_value if apart else None,
        }
    return flat


def evaluate(
    cohort: Cohort,
    store: FeatureStore,
    request: EvaluateRequest,
    out: Path,
    tell: ProgressCallback = lambda text: None,
) -> EvaluateReport:
    """Cross-validate a head and write RUN/; finished folds of an earlier run are kept.

    Raises
    ------
    RequestError
        If nothing can be evaluated, or `out` holds something else.
    """
    notes = RunNotes()
    rows: list[AblationRow] = []
    with evaluation_folder(out), ExitStack() as resources:
        check_kind(out, comparison=False)
        encoder = ",".join(encoders_of(request.fit.encoder, store))
        request = replace(request, fit=replace(request.fit, encoder=encoder))
        ready = prepare_cohort(cohort, store, request, notes, tell)
        variants = chosen_variants(request, ready.mpps) if request.ablate else []
        if variants and request.ray is not None:  # one connection for all of them
            counts_bytes = ready.shared.counts_bytes
            resources.enter_context(connected_ray(request.ray.address, usable_cores(), counts_bytes))
            request = replace(request, ray=replace(request.ray, address=None))
        metrics = cross_validate(ready, request, out, notes, tell)
        if variants:
            rows = evaluate_ablations(ready, request, variants, metrics.test, out, notes, tell)
    return EvaluateReport(metrics=metrics, ablations=rows, **vars(notes))
