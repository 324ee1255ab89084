"""Commands that fill a feature store: extract, import, prototypes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mmap_st.commands import console
from mmap_st.commands import tables as results
from mmap_st.commands.options import (
    DATA,
    JOBS,
    MACHINE,
    MODEL,
    OUTPUT,
    CohortArgument,
    EncoderOption,
    MagnificationsOption,
    MppOption,
    SeedOption,
    StoreArgument,
)
from mmap_st.errors import RequestError, agreeing, counted
from mmap_st.urls import place_of


def extract(
    cohort: CohortArgument,
    store: StoreArgument,
    encoder: EncoderOption,
    magnifications: MagnificationsOption = None,
    mpp: MppOption = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="Weights of the encoder (.safetensors, .pth, or a folder with them).",
            rich_help_panel=MODEL,
        ),
    ] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Random weights, to try an encoder without its own.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run code that the encoder's hub repository carries.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    input_px: Annotated[
        int | None,
        typer.Option(
            min=1, help="Side of the windows, for encoders that take other sizes.", rich_help_panel=MODEL
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Store a grid of N x N patch tokens too (default: as the store does).",
            rich_help_panel=MODEL,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Windows embedded together (default 32 on a CPU, 256 on a GPU).",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="auto, cpu, cuda, cuda:1, mps; several, as in cuda:0,cuda:1, or all.",
            rich_help_panel=MACHINE,
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(
            help="auto (the store's, else bf16 on devices fast at it), fp32, bf16, fp16.",
            rich_help_panel=MACHINE,
        ),
    ] = "auto",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Let torch compile the network: slower to start, then faster.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Threads that read windows (default one a CPU core, up to 16).",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    cache_mb: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Memory for the decoded tiles of a slide, in MiB; up to three slides are in flight (default:"
            " what keeps all workers busy, from 256 to an eighth of the free memory).",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    resample: Annotated[
        str,
        typer.Option(
            help="Where windows are resized: auto (a GPU, if its pixels are the same) or cpu.",
            rich_help_panel=MACHINE,
        ),
    ] = "auto",
    stage: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Copy each slide to this local folder while it is embedded: of network drives, or by URL.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    stage_gb: Annotated[
        float | None,
        typer.Option(
            help="Gigabytes that slides may take there (default: half of what is free).",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    chunk: Annotated[
        int, typer.Option(min=1, help="Rows of a chunk of the store.", rich_help_panel=OUTPUT)
    ] = 1024,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace what another recipe made; try unreadable windows of finished slides again.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    tissue_min: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Leave out windows with a smaller share of tissue.", rich_help_panel=DATA
        ),
    ] = 0.0,
    spots: Annotated[
        str | None,
        typer.Option(
            metavar="GRID", help="For slides without: grid:100, hex:100 (um apart).", rich_help_panel=DATA
        ),
    ] = None,
    unchecked: Annotated[
        bool,
        typer.Option(
            "--unchecked",
            help="Embed spots that would fit the tissue better swapped, mirrored or scaled.",
            rich_help_panel=DATA,
        ),
    ] = False,
    enlarge: Annotated[
        bool,
        typer.Option(
            "--enlarge", help="Embed windows that are enlarged more than 4 times too.", rich_help_panel=DATA
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="This part of the slides only, 0/N to N-1/N.", rich_help_panel=JOBS),
    ] = None,
    claim: Annotated[
        bool,
        typer.Option(
            "--claim",
            help="Leave to other jobs the slides that they embed: any number may work on one store.",
            rich_help_panel=JOBS,
        ),
    ] = False,
    engine: Annotated[
        str, typer.Option(help="local, or ray: actors of Ray embed (extra ray).", rich_help_panel=JOBS)
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Of a Ray cluster, or auto (default: Ray is started here).",
            rich_help_panel=JOBS,
        ),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Actors of Ray (default one a GPU, or all CPUs), each with --workers CPUs.",
            rich_help_panel=JOBS,
        ),
    ] = None,
    gpus_per_actor: Annotated[
        float | None,
        typer.Option(
            min=0, help="GPUs of each, such as 0.5 (default 1 if there are any).", rich_help_panel=JOBS
        ),
    ] = None,
    status: Annotated[
        bool,
        typer.Option(
            "--status",
            help="Show how far all jobs are, from any machine; embed nothing.",
            rich_help_panel=JOBS,
        ),
    ] = False,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Draw the spots of every slide there; embed nothing.", rich_help_panel=OUTPUT
        ),
    ] = None,
) -> None:
    """Embed every spot of every slide at several magnifications."""
    from mmap_st import workflows
    from mmap_st.extract.engine import keep_freed_memory

    if preview is not None:
        _preview(cohort, store, preview, spots)
    if status:
        found = workflows.embedding_status(
            cohort, store, encoder=encoder, magnifications=magnifications, mpp=mpp, spots=spots
        )
        results.show_status(found)
        if not found.begun:
            console.warn(f"{place_of(store)} does not exist: no job has begun, or it is another store")
        raise typer.Exit
    keep_freed_memory()
    try:
        report = workflows.embed(
            cohort,
            store,
            encoder=encoder,
            magnifications=magnifications,
            mpp=mpp,
            weights=weights,
            random_weights=random_weights,
            trust_remote_code=trust_remote_code,
            input_px=input_px,
            tokens=tokens,
            batch_size=batch_size,
            device=device,
            precision=precision,
            compile=compiled,
            workers=workers,
            cache_mb=cache_mb,
            resample=resample,
            chunk=chunk,
            overwrite=overwrite,
            tissue_min=tissue_min,
            spots=spots,
            unchecked=unchecked,
            enlarge=enlarge,
            shard=shard,
            claim=claim,
            stage=stage,
            stage_gb=stage_gb,
            engine=engine,
            address=address,
            actors=actors,
            gpus_per_actor=gpus_per_actor,
        ).report
    except workflows.NothingEmbeddedError as error:
        report = error.report
    results.show_extraction(report, store)
    raise typer.Exit(1 if report.failed else 0)


def _preview(cohort: str, store: Path, folder: Path, spots: str | None) -> NoReturn:
    """Draw the spots of every slide, and end."""
    from mmap_st.data.readers import open_cohort
    from mmap_st.extract.engine import check_some_spots, preview_cohort
    from mmap_st.extract.slides import parse_grid
    from mmap_st.workflows import show_progress

    grid = None if spots is None else parse_grid(spots)
    slides = open_cohort(cohort)
    check_some_spots(slides, grid)
    with show_progress() as progress:
        drawn = preview_cohort(slides, store, folder, grid, progress)
    results.show_preview(drawn)
    raise typer.Exit(1 if drawn.failed or drawn.unscaled else 0)


def import_(
    store: StoreArgument,
    encoder: Annotated[str, typer.Option("--encoder", help="Name of what made the embeddings.")],
    mpp: Annotated[str, typer.Option("--mpp", help="Of the windows that it was shown, in um/px.")],
    features: Annotated[
        Path, typer.Option("--features", help=".npy or .h5; or a folder of SLIDE.npy and SLIDE.h5.")
    ],
    slide: Annotated[str | None, typer.Option("--slide", help="Slide that the embeddings belong to.")] = None,
    cohort: Annotated[
        str | None, typer.Option("--cohort", help="Where spots are from that the store does not have.")
    ] = None,
    spots: Annotated[
        Path | None, typer.Option("--spots", help="Instead of a cohort, a table with columns id, x, y.")
    ] = None,
    source_mpp: Annotated[
        float | None, typer.Option(min=0.01, max=100, help="um/px of the slide, where no cohort says it.")
    ] = None,
    tolerance_um: Annotated[
        float | None, typer.Option(min=0, help="Largest distance of a patch from its spot (default 5).")
    ] = None,
    tolerance_px: Annotated[float | None, typer.Option(min=0, help="The same in level-0 pixels.")] = None,
    coords: Annotated[str, typer.Option(help="What a file's coordinates are: corner or centre.")] = "corner",
    patch_px: Annotated[
        float | None,
        typer.Option(min=1, help="Side of a patch in level-0 pixels, if the file does not say."),
    ] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Rows of a chunk of the store.")] = 1024,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what another recipe made.")] = False,
) -> None:
    """Import embeddings computed elsewhere."""
    from mmap_st.data.readers import open_cohort
    from mmap_st.extract.imports import CoordinateOptions, ImportRequest, import_features
    from mmap_st.extract.windows import parse_magnifications
    from mmap_st.workflows import check_store_out, show_progress

    check_store_out(store)
    mpps = parse_magnifications(None, mpp)
    if mpps is None or len(mpps) != 1:
        raise RequestError(f"--mpp {mpp}: a file holds one magnification; give one number, such as 0.5.")
    request = ImportRequest(
        encoder=encoder,
        mpp=mpps[0],
        features=features,
        slide=slide,
        cohort=None if cohort is None else open_cohort(cohort),
        spots=spots,
        source_mpp=source_mpp,
        coordinates=CoordinateOptions(tolerance_um, tolerance_px, coords, patch_px),
        chunk=chunk,
        overwrite=overwrite,
    )
    with show_progress() as progress:
        report = import_features(request, store, progress)
    results.show_import(report, store)
    raise typer.Exit(1 if report.failed else 0)


def prototypes(
    store: StoreArgument,
    encoder: EncoderOption,
    magnifications: MagnificationsOption = None,
    mpp: MppOption = None,
    clusters: Annotated[str, typer.Option(help="Candidates of a slide: auto, or a number.")] = "auto",
    kind: Annotated[str, typer.Option("--prototypes", help="kmeans or random.")] = "kmeans",
    seed: SeedOption = 0,
) -> None:
    """Build the prototype candidates of every slide that has the encoder's embeddings."""
    from mmap_st.extract.store import FeatureStore
    from mmap_st.extract.windows import parse_magnifications
    from mmap_st.prototypes import CandidateSettings, build_all, device_of_kmeans
    from mmap_st.workflows import encoder_name, show_progress

    if clusters != "auto" and not clusters.isdecimal():
        raise RequestError(f"--clusters {clusters}: give auto or a number.")
    number = None if clusters == "auto" else int(clusters)
    settings = CandidateSettings(kind, number, seed=seed)
    with show_progress() as progress:
        report = build_all(
            FeatureStore.open(store),
            encoder_name(encoder),
            parse_magnifications(magnifications, mpp),
            settings,
            progress,
        )
    rows = [(name, str(k), "built" if new else "there before") for name, (k, new) in report.built.items()]
    console.show_table(f"candidates ({device_of_kmeans()})", ("slide", "K", ""), rows)
    if report.skipped:
        console.say(
            f"{counted(report.skipped, 'slide')} skipped: {encoder} is not complete on"
            f" {agreeing(report.skipped, 'it', 'them')}"
        )
    console.show_reasons("failed", report.failed)
    console.show_paths([store])
    raise typer.Exit(1 if report.failed else 0)
