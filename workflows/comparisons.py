"""Cross-validate one head, or compare encoders and heads on the same folds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import polars as pl

from mmap_st.data.readers import CohortSource
from mmap_st.errors import printable
from mmap_st.extract.engine import RayRequest, parse_engine
from mmap_st.files import check_folder_out
from mmap_st.head import HEADS
from mmap_st.head.evaluation import (
    AblationRow,
    CompareReport,
    CompareRequest,
    ComparisonResult,
    EvaluateReport,
    EvaluateRequest,
    EvaluationMetrics,
    RowResult,
    make_heads,
)
from mmap_st.head.evaluation import compare as run_comparison
from mmap_st.head.evaluation import evaluate as run_evaluation
from mmap_st.head.runs import fit_request
from mmap_st.workflows.arguments import (
    Encoders,
    Genes,
    Names,
    Scales,
    Settings,
    StoreLike,
    encoder_name,
    encoder_names,
    mpps_of,
    open_store,
    pairs_of,
    panel_text,
    read_cohort,
    words_of,
)
from mmap_st.workflows.display import show_progress, warn_left_out, warn_user

#: Settings of several heads: ``{"ridge": {"alpha": 1e5}}``.
SettingsOfHeads: TypeAlias = Mapping[str, Settings]


class Evaluation:
    """A cross-validation that `evaluate` ran.

    Attributes
    ----------
    path
        Its folder: every fold's head, its held-out predictions, and metrics.
    head
        Name of the head.
    report
        Scores, and what was left out.
    """

    def __init__(self, path: Path, head: str, report: EvaluateReport) -> None:
        self.path, self.head, self.report = path, head, report

    @property
    def metrics(self) -> EvaluationMetrics:
        """Scores of the head and of the baselines on held-out slides, with intervals over patients."""
        return self.report.metrics

    @property
    def ablations(self) -> tuple[AblationRow, ...]:
        """The head as it is and without each of its parts, where this was requested."""
        return tuple(self.report.ablations)

    @property
    def table(self) -> pl.DataFrame:
        """One row per predictor: the head, ridge and the training mean."""
        return self.metrics.table

    def to_polars(self) -> pl.DataFrame:
        """One row per predictor and slide."""
        return self.metrics.to_polars()

    def __repr__(self) -> str:
        return printable(f"Evaluation {self.path}: {self.head}\n{self.metrics!r}", lines=True)


class Comparison:
    """A comparison that `compare` ran.

    Attributes
    ----------
    path
        Its folder: a folder per row, compare.json and compare.csv.
    report
        The result, and what was left out.
    """

    def __init__(self, path: Path, report: CompareReport) -> None:
        self.path, self.report = path, report

    @property
    def result(self) -> ComparisonResult:
        """Every row, and what all rows have in common."""
        return self.report.result

    @property
    def rows(self) -> tuple[RowResult, ...]:
        """Every row: an encoder, a head and magnifications."""
        return self.result.rows

    @property
    def table(self) -> pl.DataFrame:
        """One row per encoder, head and set of magnifications, as in compare.csv."""
        return self.result.table

    def to_polars(self) -> pl.DataFrame:
        """One row per row of the comparison and slide."""
        return self.result.to_polars()

    def __repr__(self) -> str:
        return printable(f"Comparison {self.path}\n{self.result!r}", lines=True)


def evaluate(
    cohort: CohortSource,
    store: StoreLike,
    *,
    encoder: Encoders,
    out: str | Path,
    head: str | None = None,
    folds: str | Path = "patient",
    genes: Genes | None = None,
    gene_set: str = "intersection",
    values: str | None = None,
    magnifications: Scales | None = None,
    mpp: Scales | None = None,
    protocol: str = "default",
    prototypes: str | None = None,
    settings: Settings | None = None,
    seeds: int = 1,
    seed: int = 0,
    jobs: int | None = None,
    engine: str = "local",
    address: str | None = None,
    gpus_per_job: float | None = None,
    ablate: bool = False,
    variants: Names | None = None,
    progress: bool = True,
) -> Evaluation:
    """Cross-validate one head: every slide is tested by heads that did not see its patient.

    The same call resumes a run that was stopped.

    Parameters
    ----------
    cohort, store, encoder, head, genes, gene_set, values, magnifications, mpp, protocol, prototypes, settings
        As `fit_head` takes them.
    out
        Folder to write to, or to resume in.
    folds
        ``patient``: leave one patient out; ``patient:5``: five folds of patients; ``slide``: leave one slide
        out; or a CSV file with the columns slide (or patient) and fold.
    seeds, seed
        Each fold is fitted `seeds` times, with seeds from `seed` on.
    jobs
        Fits that run in parallel. None: as many as cores and memory allow.
    engine
        ``local``: this machine fits. ``ray``: tasks of Ray do, on this machine or on a cluster.
    address
        Of a Ray cluster, or ``auto``, for ``engine="ray"``. None: the one that this process is connected to;
        else Ray is started here.
    gpus_per_job
        How many GPUs each fit gets there, such as 0.5. None: one where its head trains on GPUs and the
        cluster has any.
    ablate
        Evaluate the head without each of its parts too (head ``mmap``).
    variants
        Which ablations, such as ``["no-prototypes", "selected-5"]``. None: all.
    progress
        Whether to show it.

    Returns
    -------
    Scores with intervals over patients: ``table`` is a summary, ``to_polars()`` has one row per slide.

    Warns
    -----
    SlidesLeftOutWarning
        If slides were skipped or failed; it gives their reasons.
    MmapWarning
        If a fold has patients on both sides, or failed; it gives the reason.

    Raises
    ------
    RequestError
        If nothing can be evaluated, or `out` holds something else.

    Examples
    --------
    >>> found = mm.evaluate(
    ...     cohort, store, encoder="efficientnet-lite0", head="ridge", settings={"alpha": 1e4},
    ...     genes="mean:10", out=folder / "evaluation", jobs=1, progress=False,
    ... )
    >>> found.table["predictor"].to_list()
    ['head', 'ridge', 'mean']
    """
    ray = _ray(engine, address, jobs, gpus_per_job)
    with panel_text(genes, _shared_folder(ray, Path(out))) as panel, show_progress(progress) as tell:
        fit = fit_request(
            encoder_names(encoder),
            head,
            protocol,
            pairs_of(settings),
            prototypes,
            genes=panel,
            mpps=mpps_of(magnifications, mpp),
            gene_set=gene_set,
        )
        keys = None if variants is None else tuple(words_of(variants, "--variants"))
        request = EvaluateRequest(
            fit,
            str(folds),
            tuple(range(seed, seed + seeds)),
            jobs,
            ablate or keys is not None,
            keys,
            ray,
        )
        slides = read_cohort(cohort, values=values)
        report = run_evaluation(slides, open_store(store), request, Path(out), tell)
    _warn(report)
    return Evaluation(Path(out), fit.method.name, report)


def compare(
    cohort: CohortSource,
    store: StoreLike,
    *,
    encoders: Names,
    out: str | Path,
    joined: bool = False,
    heads: Names = ("mmap", "ridge", "mean"),
    folds: str | Path = "patient",
    genes: Genes | None = None,
    gene_set: str = "intersection",
    values: str | None = None,
    magnifications: Scales | Sequence[Scales] | None = None,
    mpp: Scales | Sequence[Scales] | None = None,
    protocol: str = "default",
    prototypes: str | None = None,
    settings: SettingsOfHeads | None = None,
    seeds: int = 1,
    seed: int = 0,
    jobs: int | None = None,
    engine: str = "local",
    address: str | None = None,
    gpus_per_job: float | None = None,
    scatter: str | tuple[str, str] | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare every encoder with every head on the same folds.

    The same call resumes a run that was stopped; another one may add encoders, heads, magnifications and
    seeds.

    Parameters
    ----------
    cohort, store, genes, gene_set, values, protocol, prototypes
        As `fit_head` takes them.
    encoders
        Names of encoders in the store.
    out
        Folder to write to, or to resume in.
    joined
        Compare all encoders in one head too, see `fit_head`; the encoder of these rows is ``"a,b"``.
    heads
        Names of heads; ``"all"``: every head that is built in.
    folds, seeds, seed, jobs, engine, address, gpus_per_job
        As `evaluate` takes them.
    magnifications, mpp
        As `fit_head` takes them; or several sets, such as ``[[20, 10, 5], [20]]``, each of which is compared.
    settings
        Of each head, such as ``{"ridge": {"alpha": 1e5}}``.
    scatter
        Keys of two rows to compare gene by gene, such as ``("uni/mmap", "uni/ridge")``. None: those of the
        heads mmap and ridge.
    progress
        Whether to show it.

    Returns
    -------
    ``table`` has one row per encoder, head and set of magnifications, with scores, intervals over patients
    and paired differences; ``to_polars()`` has one row per slide.

    Warns
    -----
    SlidesLeftOutWarning
        If slides were skipped or failed; it gives their reasons.
    MmapWarning
        If a fold has patients on both sides, or a row could not be evaluated; it gives the reason.

    Raises
    ------
    RequestError
        If nothing can be compared, or `out` holds something else.

    Examples
    --------
    >>> result = mm.compare(
    ...     cohort, store, encoders=["efficientnet-lite0"], heads=["ridge", "mean"], genes="mean:10",
    ...     settings={"ridge": {"alpha": 1e4}}, out=folder / "comparison", jobs=1, progress=False,
    ... )
    >>> result.table.select("encoder", "head").rows()
    [('efficientnet-lite0', 'ridge'), ('efficientnet-lite0', 'mean')]
    """
    ray = _ray(engine, address, jobs, gpus_per_job)
    with panel_text(genes, _shared_folder(ray, Path(out))) as panel, show_progress(progress) as tell:
        all_heads = isinstance(heads, str) and heads.strip() == "all"
        names = list(HEADS) if all_heads else words_of(heads, "--heads")
        pairs = [pair for name, own in (settings or {}).items() for pair in pairs_of(own, f"{name}.")]
        request = CompareRequest(
            tuple(dict.fromkeys(encoder_name(name) for name in words_of(encoders, "--encoders"))),
            make_heads(names, pairs, protocol, prototypes, genes=panel, gene_set=gene_set),
            _sets(magnifications, mpp),
            str(folds),
            tuple(range(seed, seed + seeds)),
            jobs,
            scatter if scatter is None or isinstance(scatter, str) else ",".join(scatter),
            joined,
            ray,
        )
        slides = read_cohort(cohort, values=values)
        report = run_comparison(slides, open_store(store), request, Path(out), tell)
    _warn(report)
    return Comparison(Path(out), report)


def _shared_folder(ray: RayRequest | None, out: Path) -> Path | None:
    """Where other machines find files of this one, where they may fit."""
    if ray is None:
        return None
    check_folder_out(out)
    return next((folder for folder in out.absolute().parents if os.access(folder, os.W_OK)), None)


def _ray(engine: str, address: str | None, jobs: int | None, gpus_per_job: float | None) -> RayRequest | None:
    """Where Ray is, where it is asked for."""
    ray = parse_engine(engine, address, None, gpus_per_job, gpus_option="--gpus-per-job")
    return ray and replace(ray, actors=jobs)


def _warn(report: EvaluateReport | CompareReport) -> None:
    for text in report.warnings:
        warn_user(text)
    warn_left_out(report.failed, report.skipped)
    for what, reason in report.failed_folds.items():
        warn_user(f"{what} failed: {reason}")


def _sets(
    magnifications: Scales | Sequence[Scales] | None, mpp: Scales | Sequence[Scales] | None
) -> tuple[tuple[float, ...] | None, ...]:
    """Sets of magnifications to compare; one of None where none is given."""
    found = [mpps_of(scales, None) for scales in _each(magnifications)]
    found += [mpps_of(None, scales) for scales in _each(mpp)]
    return tuple(dict.fromkeys(found)) or (None,)


def _each(scales: Scales | Sequence[Scales] | None) -> list[Scales]:
    """Several sets, or the one that is given."""
    if scales is None:
        return []
    if isinstance(scales, str | float | int):
        return [scales]
    several = any(not isinstance(one, str | float | int) for one in scales)
    return list(scales) if several else [scales]  # type: ignore[list-item]
