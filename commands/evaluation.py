"""The commands that measure heads: evaluate and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmap_st.commands import console
from mmap_st.commands import tables as results
from mmap_st.commands.options import (
    EVALUATION,
    MODEL,
    OUTPUT,
    AddressOption,
    CohortArgument,
    EncodersOption,
    FitEngineOption,
    FoldsOption,
    GeneSetOption,
    GpusPerJobOption,
    HeadOption,
    JobsOption,
    MagnificationsOption,
    MppOption,
    PanelOption,
    ProtocolOption,
    PrototypesOption,
    SeedOption,
    SeedsOption,
    SetOption,
    StoreArgument,
    ValuesOption,
    parse_settings,
    parse_settings_of_heads,
)
from mmap_st.errors import counted

if TYPE_CHECKING:
    from mmap_st.head.evaluation import RowResult


def evaluate(
    cohort: CohortArgument,
    store: StoreArgument,
    encoder: EncodersOption,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="RUN", help="Folder to write, or to resume in.", rich_help_panel=OUTPUT
        ),
    ],
    head: HeadOption = None,
    folds: FoldsOption = "patient",
    genes: PanelOption = None,
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
    engine: FitEngineOption = "local",
    address: AddressOption = None,
    gpus_per_job: GpusPerJobOption = None,
    ablate: Annotated[
        bool,
        typer.Option(
            "--ablate", help="Also evaluate the head with each part removed.", rich_help_panel=EVALUATION
        ),
    ] = False,
    variants: Annotated[
        str | None,
        typer.Option(
            help="Ablations to evaluate, such as no-prototypes,selected-5; default: all.",
            rich_help_panel=EVALUATION,
        ),
    ] = None,
) -> None:
    """Cross-validate one head; resume what a stopped run left."""
    from mmap_st import workflows
    from mmap_st.head.runs import METRICS
    from mmap_st.report import draw_ablations

    evaluation = workflows.evaluate(
        cohort,
        store,
        encoder=encoder,
        out=out,
        head=head,
        folds=folds,
        genes=genes,
        gene_set=gene_set,
        values=values,
        magnifications=magnifications,
        mpp=mpp,
        protocol=protocol,
        prototypes=prototypes,
        settings=parse_settings(set_),
        seeds=seeds,
        seed=seed,
        jobs=jobs,
        engine=engine,
        address=address,
        gpus_per_job=gpus_per_job,
        ablate=ablate,
        variants=variants,
    )
    report = evaluation.report
    for text in report.warnings:
        console.warn(text)
    if report.skipped:
        console.say(f"{counted(len(report.skipped), 'slide')} skipped (no counts, or not in the store)")
    if "," in encoder:  # each lacks one or another of them
        console.show_reasons("skipped", report.skipped)
    results.show_evaluation(report.metrics, evaluation.head)
    varied = len(report.ablations) > 1
    if varied:
        results.show_ablations(report.ablations)
    console.show_reasons("failed", report.failed)
    console.show_reasons("failed", report.failed_folds, "fold")
    pictures = draw_ablations(report.ablations, out) if varied else []
    console.show_paths([out / METRICS, *pictures])
    raise typer.Exit(1 if report.failed or report.failed_folds else 0)


def compare(
    cohort: CohortArgument,
    store: StoreArgument,
    encoders: Annotated[str, typer.Option(help="Of the store, such as uni,virchow2.", rich_help_panel=MODEL)],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="RUN", help="Folder to write, or to resume in.", rich_help_panel=OUTPUT
        ),
    ],
    joined: Annotated[
        bool, typer.Option("--joined", help="All encoders in one head too.", rich_help_panel=MODEL)
    ] = False,
    heads: Annotated[
        str,
        typer.Option(
            help="Such as mmap,ridge; all: every head that is built in; FILE.py:NAME.", rich_help_panel=MODEL
        ),
    ] = "mmap,ridge,mean",
    folds: FoldsOption = "patient",
    genes: PanelOption = None,
    gene_set: GeneSetOption = "intersection",
    values: ValuesOption = None,
    magnifications: Annotated[
        list[str] | None,
        typer.Option(
            help="Such as 20,10,5; given more than once: each set is compared.", rich_help_panel=MODEL
        ),
    ] = None,
    mpp: Annotated[
        list[str] | None, typer.Option(help="The same in um/px, such as 0.5,1,2.", rich_help_panel=MODEL)
    ] = None,
    protocol: ProtocolOption = "default",
    prototypes: PrototypesOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="HEAD.KEY=VALUE",
            help="A setting of one head; --set help lists them.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    seeds: SeedsOption = 1,
    seed: SeedOption = 0,
    jobs: JobsOption = None,
    engine: FitEngineOption = "local",
    address: AddressOption = None,
    gpus_per_job: GpusPerJobOption = None,
    scatter: Annotated[
        str | None,
        typer.Option(
            metavar="ROW,ROW", help="Rows to draw gene by gene; default: mmap, ridge.", rich_help_panel=OUTPUT
        ),
    ] = None,
) -> None:
    """Compare encoders and heads on the same folds; resume what a stopped run left."""
    from mmap_st import workflows
    from mmap_st.head.evaluation import COMPARE_CSV, COMPARE_JSON
    from mmap_st.report import write_markdown

    comparison = workflows.compare(
        cohort,
        store,
        encoders=encoders,
        out=out,
        joined=joined,
        heads=heads,
        folds=folds,
        genes=genes,
        gene_set=gene_set,
        values=values,
        magnifications=None if magnifications is None else [text.split(",") for text in magnifications],
        mpp=None if mpp is None else [text.split(",") for text in mpp],
        protocol=protocol,
        prototypes=prototypes,
        settings=parse_settings_of_heads(set_),
        seeds=seeds,
        seed=seed,
        jobs=jobs,
        engine=engine,
        address=address,
        gpus_per_job=gpus_per_job,
        scatter=scatter,
    )
    report = comparison.report
    with workflows.show_progress() as progress:
        progress("drawing")
        pictures = _draw(report.result.rows, out, report.pair)
    for text in report.warnings:
        console.warn(text)
    if report.skipped:
        console.say(
            f"{counted(len(report.skipped), 'slide')} skipped (no counts, or not all encoders in the store)"
        )
    if joined:
        console.show_reasons("skipped", report.skipped)
    results.show_comparison(report.result)
    console.show_reasons("failed", report.failed)
    console.show_reasons("failed", report.failed_folds, "row and fold")
    table = write_markdown(report.result, out / "compare.md")
    console.show_paths([out / COMPARE_JSON, out / COMPARE_CSV, table, *pictures])
    raise typer.Exit(1 if report.failed or report.failed_folds else 0)


def _draw(rows: Sequence[RowResult], out: Path, pair: tuple[str, str] | None) -> list[Path]:
    from mmap_st.head.evaluation import row_genes
    from mmap_st.report import draw_comparison, draw_genes

    written = [draw_comparison(rows, out / "compare.png")]
    if pair is not None:
        files = {row.key: row_genes(out, row) for row in rows}
        first, second = pair
        written.append(draw_genes((first, files[first]), (second, files[second]), out / "genes.png"))
    return [path for path in written if path is not None]
