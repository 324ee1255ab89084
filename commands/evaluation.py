"""The commands that measure heads: evaluate and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmap_st.commands import console
from mmap_st.commands import tables as results
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
from mmap_st.errors import RequestError

if TYPE_CHECKING:
    from mmap_st.head.evaluation import RowResult


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
    from mmap_st.head.evaluation import EvaluateRequest
    from mmap_st.head.evaluation import evaluate as run
    from mmap_st.head.runs import METRICS, fit_request
    from mmap_st.report import draw_ablations

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
    if report.skipped:
        console.say(f"{len(report.skipped)} slides skipped (no counts, or not in the store)")
    results.show_evaluation(report.metrics, fit.method.name)
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
    encoders: Annotated[str, typer.Option(help="Of the store, such as uni,virchow2.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder to write, or to go on in.")],
    heads: Annotated[
        str, typer.Option(help="Such as mmap,ridge; all: every head that is built in; FILE.py:NAME.")
    ] = "mmap,ridge,mean",
    folds: FoldsOption = "patient",
    genes: GenesOption = None,
    gene_set: GeneSetOption = "intersection",
    values: ValuesOption = None,
    magnifications: Annotated[
        list[str] | None,
        typer.Option(help="Such as 20,10,5; given more than once: each set is compared."),
    ] = None,
    mpp: Annotated[list[str] | None, typer.Option(help="The same in um/px, such as 0.5,1,2.")] = None,
    protocol: ProtocolOption = "default",
    prototypes: PrototypesOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="HEAD.KEY=VALUE", help="A setting of one head.")
    ] = None,
    seeds: SeedsOption = 1,
    seed: SeedOption = 0,
    jobs: JobsOption = None,
    scatter: Annotated[
        str | None, typer.Option(metavar="ROW,ROW", help="Rows to draw gene by gene; default: mmap, ridge.")
    ] = None,
) -> None:
    """Compare encoders and heads on the same folds; go on with what a stopped run left."""
    from mmap_st.data.readers import open_cohort
    from mmap_st.extract.store import FeatureStore
    from mmap_st.head import HEADS
    from mmap_st.head.evaluation import COMPARE_CSV, COMPARE_JSON, CompareRequest, make_heads
    from mmap_st.head.evaluation import compare as run
    from mmap_st.report import write_markdown

    names = list(HEADS) if heads.strip() == "all" else _words(heads, "--heads")
    request = CompareRequest(
        tuple(dict.fromkeys(stored_encoder(name) for name in _words(encoders, "--encoders"))),
        make_heads(names, set_ or (), protocol, prototypes, genes=genes, gene_set=gene_set),
        _sets(magnifications, mpp),
        folds,
        tuple(range(seed, seed + seeds)),
        jobs,
        scatter,
    )
    slides = open_cohort(cohort, values=parse_values(values))
    with console.status() as tell:
        report = run(slides, FeatureStore.open(store), request, out, tell)
        tell("drawing")
        pictures = _draw(report.result.rows, out, report.pair)
    for text in report.warnings:
        console.warn(text)
    if report.skipped:
        console.say(f"{len(report.skipped)} slides skipped (no counts, or not all encoders in the store)")
    results.show_comparison(report.result)
    console.show_reasons("failed", report.failed)
    console.show_reasons("failed", report.failed_folds, "row and fold")
    table = write_markdown(report.result, out / "compare.md")
    console.show_paths([out / COMPARE_JSON, out / COMPARE_CSV, table, *pictures])
    raise typer.Exit(1 if report.failed or report.failed_folds else 0)


def _words(text: str, flag: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise RequestError(f"{flag} {text!r} names nothing; give names separated by commas.")
    return words


def _sets(magnifications: list[str] | None, mpp: list[str] | None) -> tuple[tuple[float, ...] | None, ...]:
    """Sets of magnifications to compare; one of None where none is given."""
    from mmap_st.extract.windows import parse_magnifications

    sets = [parse_magnifications(text, None) for text in magnifications or ()]
    sets += [parse_magnifications(None, text) for text in mpp or ()]
    return tuple(dict.fromkeys(sets)) or (None,)


def _draw(rows: Sequence[RowResult], out: Path, pair: tuple[str, str] | None) -> list[Path]:
    from mmap_st.head.evaluation import row_genes
    from mmap_st.report import draw_comparison, draw_genes

    written = [draw_comparison(rows, out / "compare.png")]
    if pair is not None:
        files = {row.key: row_genes(out, row) for row in rows}
        first, second = pair
        written.append(draw_genes((first, files[first]), (second, files[second]), out / "genes.png"))
    return [path for path in written if path is not None]
