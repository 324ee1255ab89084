"""Commands that train, apply and show heads: fit-head, predict, report, demo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mmap_st.commands import console
from mmap_st.commands import tables as results
from mmap_st.commands.options import (
    DATA,
    MACHINE,
    MODEL,
    OUTPUT,
    CohortArgument,
    EncodersOption,
    GeneSetOption,
    HeadOption,
    MagnificationsOption,
    MppOption,
    PanelOption,
    ProtocolOption,
    PrototypesOption,
    SeedOption,
    SetOption,
    StoreArgument,
    ValuesOption,
    parse_settings,
)
from mmap_st.errors import counted


def fit_head(
    cohort: CohortArgument,
    store: StoreArgument,
    encoder: EncodersOption,
    out: Annotated[
        Path, typer.Option("--out", metavar="RUN", help="Folder to write.", rich_help_panel=OUTPUT)
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run that is in RUN.", rich_help_panel=OUTPUT)
    ] = False,
    head: HeadOption = None,
    genes: PanelOption = None,
    train: Annotated[
        str | None, typer.Option(help="WHERE: patient=A,B, slide=C5,C6 or a file.", rich_help_panel=DATA)
    ] = None,
    val: Annotated[
        str | None, typer.Option(help="WHERE of the slides that validate.", rich_help_panel=DATA)
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="WHERE of the slides to predict and score.", rich_help_panel=DATA)
    ] = None,
    gene_set: GeneSetOption = "intersection",
    values: ValuesOption = None,
    magnifications: MagnificationsOption = None,
    mpp: MppOption = None,
    protocol: ProtocolOption = "default",
    prototypes: PrototypesOption = None,
    set_: SetOption = None,
    seed: SeedOption = 0,
) -> None:
    """Train one head, predict the test slides and score them."""
    from mmap_st import workflows
    from mmap_st.head.runs import METRICS

    trained = workflows.fit_head(
        cohort,
        store,
        encoder=encoder,
        out=out,
        head=head,
        genes=genes,
        train=train,
        val=val,
        test=test,
        gene_set=gene_set,
        values=values,
        magnifications=magnifications,
        mpp=mpp,
        protocol=protocol,
        prototypes=prototypes,
        settings=parse_settings(set_),
        seed=seed,
        overwrite=overwrite,
    )
    report = trained.report
    assert report is not None
    for text in report.warnings:
        console.warn(text)
    if report.skipped:
        console.say(f"{counted(len(report.skipped), 'slide')} skipped (no counts, or not in the store)")
    if "," in encoder:  # each lacks one or another of them
        console.show_reasons("skipped", report.skipped)
    results.show_metrics(report.metrics, trained.head)
    console.show_reasons("failed", report.failed)
    console.show_paths([out / METRICS] if report.metrics.test else [out])
    raise typer.Exit(1 if report.failed else 0)


def predict(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A trained head: folder, file of `mmap pack`, hf-hub:ORG/NAME."),
    ],
    source: Annotated[
        str,
        typer.Argument(
            metavar="STORE|SLIDES",
            help="A feature store; or slides to embed first: an image, a folder of images, or a cohort.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder for one .h5ad per slide.", rich_help_panel=OUTPUT)
    ],
    slides: Annotated[
        str | None, typer.Option(help="Such as C4,B4; default: all that can be.", rich_help_panel=DATA)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace predictions of another head.", rich_help_panel=OUTPUT)
    ] = False,
    cohort: Annotated[
        str | None,
        typer.Option("--cohort", help="Where measured values and images are from.", rich_help_panel=DATA),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail slides that are unlike anything the head was trained on.",
            rich_help_panel=DATA,
        ),
    ] = False,
    head_code: Annotated[
        str | None,
        typer.Option(
            "--head-code",
            metavar="FILE.py:NAME",
            help="A head of your own: code that you trust.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    allow_changed_code: Annotated[
        bool,
        typer.Option(
            "--allow-changed-code",
            help="Take --head-code even if its code has changed.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            help="Where slides are embedded; default: features.zarr in --out.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    spots: Annotated[
        str | None,
        typer.Option(
            metavar="GRID",
            help="For slides without: grid:100, hex:100; default: as in training.",
            rich_help_panel=DATA,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="FILE.py:NAME",
            help="The head's encoder, if it is your own code.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", help="Weights of the head's encoder; default: as extract.", rich_help_panel=MODEL
        ),
    ] = None,
    source_mpp: Annotated[
        float | None,
        typer.Option(
            "--source-mpp",
            min=0.01,
            max=100,
            help="um/px of slides that do not state it.",
            rich_help_panel=DATA,
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run code that the encoder's hub repository carries.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=MACHINE)
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16.", rich_help_panel=MACHINE)] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows embedded together.", rich_help_panel=MACHINE)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that read windows.", rich_help_panel=MACHINE)
    ] = None,
    unchecked: Annotated[
        bool,
        typer.Option(
            "--unchecked",
            help="Embed spots that would fit the tissue better if they were turned.",
            rich_help_panel=DATA,
        ),
    ] = False,
    enlarge: Annotated[
        bool,
        typer.Option(
            "--enlarge", help="Embed windows that are enlarged more than 4 times too.", rich_help_panel=DATA
        ),
    ] = False,
    gene_sets: Annotated[
        Path | None,
        typer.Option(
            "--gene-sets",
            metavar="FILE.gmt",
            help="Score spots by these gene sets: obs['score_NAME'].",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    page: Annotated[
        bool | None,
        typer.Option(
            "--page/--no-page",
            help="Write the page report.html too; default: where slides are given and not a store.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Predict expression of slides, sequenced or not, from a store or straight from the images."""
    from mmap_st import workflows
    from mmap_st.errors import SlidesFailedError
    from mmap_st.extract.engine import keep_freed_memory

    keep_freed_memory()
    try:
        report = workflows.predict(
            run,
            source,
            out,
            slides=slides,
            cohort=cohort,
            overwrite=overwrite,
            strict=strict,
            head_code=head_code,
            allow_changed_code=allow_changed_code,
            embeddings=store,
            spots=spots,
            encoder=encoder,
            weights=weights,
            source_mpp=source_mpp,
            trust_remote_code=trust_remote_code,
            device=device,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            unchecked=unchecked,
            enlarge=enlarge,
            gene_sets=gene_sets,
            page=page,
        )
    except SlidesFailedError as error:
        console.show_reasons("failed", error.failed)
        raise typer.Exit(1) from None
    for extraction in report.extractions:
        results.show_embedded(extraction)
    for text in report.notes:
        console.warn(text)
    console.show_reasons("unlike anything the head was trained on", report.unlike)
    console.show_reasons("far from the training tissue", report.far)
    results.show_slide_scores(report.scores, report.coverage)
    console.show_reasons("skipped", report.skipped)
    console.show_reasons("failed", report.failed)
    console.show_paths([*report.written.values(), *([report.page] if report.page else [])])
    # Slides that are named are all to be done; otherwise those that can be.
    missed = report.failed or (slides is not None and report.skipped)
    raise typer.Exit(1 if missed else 0)


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("demo"),
    seed: SeedOption = 0,
    patients: Annotated[int, typer.Option(min=5, help="Simulated patients, one section each.")] = 12,
    size_um: Annotated[
        float, typer.Option("--size-um", min=600, max=20_000, help="Side of each section in micrometres.")
    ] = 2600.0,
) -> None:
    """Run the whole pipeline on simulated tissue: a few minutes on two cores."""
    from mmap_st.extract.engine import keep_freed_memory
    from mmap_st.workflows import SETTINGS, run_demo

    keep_freed_memory()
    result = run_demo(out, replace(SETTINGS, patients=patients, size_um=size_um), seed)
    results.show_metrics(result.metrics, "mmap")
    steps = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in result.seconds.items())
    console.say(f"{steps}; together {sum(result.seconds.values()):.0f} s")
    console.show_paths([result.run, *result.pictures])
