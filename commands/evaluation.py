"""The command that measures one head: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmap_st import console, results
from mmap_st.commands.options import (
    CohortArgument,
    EncoderOption,
    FoldsOption,
    GeneSetOption,
    GenesOption,
    HeadOption,
    JobsOption,
    MagnificationsOption,
    MppOption,
    ProtocolOption,
    PrototypesOption,
    SeedOption,
    SeedsOption,
    SetOption,
    StoreArgument,
    ValuesOption,
    parse_values,
    stored_encoder,
)


def evaluate(
    cohort: CohortArgument,
    store: StoreArgument,
    encoder: EncoderOption,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder to write, or to go on in.")],
    head: HeadOption = None,
    folds: FoldsOption = "patient",
    genes: GenesOption = None,
    gene_set: GeneSetOption = "intersection",
    values: ValuesOption = None,
    magnifications: MagnificationsOption = None,
    mpp: MppOption = None,
    protocol: ProtocolOption = "default",
    prototypes: PrototypesOption = None,
    set_: SetOption = None,
    seeds: SeedsOption = 1,
    seed: SeedOption = 0,
    jobs: JobsOption = None,
    ablate: Annotated[bool, typer.Option("--ablate", help="The head without each of its parts too.")] = False,
    variants: Annotated[
        str | None,
        typer.Option(help="Ablations to evaluate, such as no-prototypes,selected-5; default: all."),
    ] = None,
) -> None:
    """Cross-validate one head; go on with what a stopped run left."""
    from mmap_st.data.readers import open_cohort
    from mmap_st.extract.store import FeatureStore
    from mmap_st.extract.windows import parse_magnifications
    from mmap_st.head.evaluation.request import EvaluateRequest
    from mmap_st.head.evaluation.run import evaluate as run
    from mmap_st.head.request import fit_request
    from mmap_st.head.run_folder import METRICS
    from mmap_st.report.ablations import draw_ablations

    fit = fit_request(
        stored_encoder(encoder),
        head,
        protocol,
        set_ or (),
        prototypes,
        genes=genes,
        mpps=parse_magnifications(magnifications, mpp),
        gene_set=gene_set,
    )
    keys = None if variants is None else tuple(key.strip() for key in variants.split(",") if key.strip())
    request = EvaluateRequest(
        fit, folds, tuple(range(seed, seed + seeds)), jobs, ablate or variants is not None, keys
    )
    slides = open_cohort(cohort, values=parse_values(values))
    with console.status() as tell:
        report = run(slides, FeatureStore.open(store), request, out, tell)
    for text in report.warnings:
        console.warn(text)
    if report.passed_over:
        console.say(f"{len(report.passed_over)} slides passed over (no counts, or not in the store)")
    results.show_evaluation(report.metrics, fit.method.name)
    varied = len(report.ablations) > 1
    if varied:
        results.show_ablations(report.ablations)
    console.show_reasons("failed", report.failed)
    console.show_reasons("failed", report.failed_folds, "fold")
    pictures = draw_ablations(report.ablations, out) if varied else []
    console.show_paths([out / METRICS, *pictures])
    raise typer.Exit(1 if report.failed or report.failed_folds else 0)
