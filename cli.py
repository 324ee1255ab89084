"""The commands: parse, call one function of the library, show the result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import mmap_st
from mmap_st import console, results
from mmap_st.cli_download import download
from mmap_st.errors import MmapError, RequestError

app = typer.Typer(
    name="mmap",
    help="Spatial gene expression from H&E slides.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED = 130  # what typer makes of Ctrl-C

CohortArgument = Annotated[
    str, typer.Argument(metavar="COHORT", help="A cohort file (CSV, Parquet) or reader:path.")
]
StoreArgument = Annotated[Path, typer.Argument(metavar="STORE", help="A feature store.")]
EncoderOption = Annotated[str, typer.Option("--encoder", help="An encoder, or timm:NAME.")]
MagnificationsOption = Annotated[
    str | None, typer.Option("--magnifications", help="Such as 20,10,5; 20x is 0.5 um/px.")
]
MppOption = Annotated[str | None, typer.Option("--mpp", help="The same in um/px, such as 0.5,1,2.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of all randomness.")]


def main() -> None:
    """Run a command; turn what went wrong into one sentence and an exit status."""
    try:
        app()
    except RequestError as error:
        console.fail(str(error))
        sys.exit(2)
    except MmapError as error:
        console.fail(str(error))
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == _INTERRUPTED:
            console.fail("stopped; what was finished is kept, and the same command goes on from there.")
        raise


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mmap-st {mmap_st.__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Spatial gene expression from H&E slides."""
    console.set_up_logging(verbose=verbose)


app.command()(download)


@app.command()
def cohort(
    source: Annotated[str, typer.Argument(metavar="READER:PATH", help="Such as her2st:her2st/data.")],
    out: Annotated[Path, typer.Option("--out", help="The cohort file to write (.csv or .parquet).")],
) -> None:
    """Find the slides of a folder, look at them, and write a cohort."""
    from mmap_st.data.cohort import write_cohort
    from mmap_st.data.readers import open_cohort
    from mmap_st.data.survey import survey

    found = open_cohort(source)
    rows, problems = [], {}
    with console.status() as tell:
        for look in survey(found):
            row = look.row
            tell(f"looking at {row.slide}")
            if look.problem is not None:
                problems[row.slide] = look.problem
            scale = "" if look.mpp is None else f"{look.mpp.mpp:.4f} ± {look.mpp.standard_error:.4f}"
            rows.append(
                (
                    row.slide,
                    row.patient or "",
                    "yes" if row.image else "",
                    "yes" if row.counts else "",
                    "" if look.spots is None else str(look.spots),
                    str(look.unmatched) if look.unmatched else "",
                    scale,
                )
            )
    write_cohort(found, out)
    columns = ("slide", "patient", "image", "counts", "spots", "unmatched", "um/px from the spots")
    console.show_table(f"{len(found.slides)} slides", columns, rows)
    console.show_reasons("cannot be used", problems)
    console.show_paths([out])
    raise typer.Exit(1 if problems else 0)


@app.command()
def extract(
    cohort: CohortArgument,
    store: StoreArgument,
    encoder: EncoderOption,
    magnifications: MagnificationsOption = None,
    mpp: MppOption = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="Weights of the encoder (.safetensors, .pth).")
    ] = None,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Random weights, to try an encoder without its own.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows handed to the encoder at a time.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto (as the store has it, else fp32), fp32, bf16, fp16.")
    ] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Threads that read windows.")] = 2,
    chunk: Annotated[
        int, typer.Option(min=1, help="Rows of a chunk: what a killed run loses at most.")
    ] = 1024,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what another recipe made.")] = False,
    spots: Annotated[
        str | None, typer.Option(metavar="GRID", help="For slides without: grid:100, hex:100 (um apart).")
    ] = None,
    preview: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw the spots of every slide there; embed nothing.")
    ] = None,
) -> None:
    """Embed every spot of every slide at several magnifications."""
    from mmap_st.data.readers import open_cohort
    from mmap_st.extract.encoders import encoder_spec
    from mmap_st.extract.grid import parse_grid
    from mmap_st.extract.preview import preview_cohort
    from mmap_st.extract.run import EncoderRequest, ExtractOptions, extract_cohort
    from mmap_st.extract.windows import parse_magnifications

    mpps = parse_magnifications(magnifications, mpp)
    grid = None if spots is None else parse_grid(spots)
    if mpps is None and preview is None:
        raise RequestError("Give --magnifications, such as 20,10,5, or --mpp, such as 0.5,1,2.")
    slides = open_cohort(cohort)
    request = EncoderRequest(encoder_spec(encoder), weights, random_weights, device, precision)
    if preview is not None:
        with console.status() as tell:
            drawn = preview_cohort(slides, store, preview, grid, tell)
        results.show_preview(drawn)
        raise typer.Exit(1 if drawn.failed else 0)
    assert mpps is not None
    options = ExtractOptions(batch_size, workers, chunk, overwrite)
    with console.ExtractionProgress() as progress:
        report = extract_cohort(slides, store, request, mpps, options, progress, grid=grid)
    results.show_extraction(report, store)
    raise typer.Exit(1 if report.failed else 0)


@app.command("import")
def import_(
    store: StoreArgument,
    encoder: Annotated[str, typer.Option("--encoder", help="Name of what made the embeddings.")],
    mpp: Annotated[str, typer.Option("--mpp", help="Of the windows that it was shown, in um/px.")],
    features: Annotated[
        Path, typer.Option("--features", help=".npy or .h5; or a folder of SLIDE.npy and SLIDE.h5.")
    ],
    slide: Annotated[str | None, typer.Option("--slide", help="The slide that they are of.")] = None,
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
        float | None, typer.Option(min=1, help="Side of a patch in level-0 pixels, if the file lacks it.")
    ] = None,
    chunk: Annotated[int, typer.Option(min=1, help="Rows of a chunk of the store.")] = 1024,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what another recipe made.")] = False,
) -> None:
    """Take embeddings that were made elsewhere into a store."""
    from mmap_st.data.readers import open_cohort
    from mmap_st.extract.imports.coordinates import CoordinateOptions
    from mmap_st.extract.imports.request import ImportRequest
    from mmap_st.extract.imports.run import import_features
    from mmap_st.extract.windows import parse_magnifications

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
    with console.status() as tell:
        report = import_features(request, store, tell)
    results.show_import(report, store)
    raise typer.Exit(1 if report.failed else 0)


@app.command()
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
    from mmap_st.prototypes.candidates import CandidateSettings, device_of_kmeans
    from mmap_st.prototypes.stored import build_all

    if clusters != "auto" and not clusters.isdecimal():
        raise RequestError(f"--clusters {clusters}: give auto or a number.")
    number = None if clusters == "auto" else int(clusters)
    settings = CandidateSettings(kind, number, seed=seed)
    with console.status() as tell:
        report = build_all(
            FeatureStore.open(store), encoder, parse_magnifications(magnifications, mpp), settings, tell
        )
    rows = [(name, str(k), "built" if new else "there before") for name, (k, new) in report.built.items()]
    console.show_table(f"candidates ({device_of_kmeans()})", ("slide", "K", ""), rows)
    if report.passed_over:
        console.say(f"{report.passed_over} slides passed over: {encoder} is not complete on them")
    console.show_reasons("failed", report.failed)
    console.show_paths([store])
    raise typer.Exit(1 if report.failed else 0)


@app.command("fit-head")
def fit_head(
    cohort: CohortArgument,
    store: StoreArgument,
    encoder: EncoderOption,
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder to write.")],
    head: Annotated[str, typer.Option(help="mmap, ridge or mean.")] = "mmap",
    genes: Annotated[
        str, typer.Option(help="all, hvg:N, mean:N, or a file with one gene a line.")
    ] = "hvg:250",
    train: Annotated[str | None, typer.Option(help="WHERE: patient=A,B, slide=C5,C6 or a file.")] = None,
    val: Annotated[str | None, typer.Option(help="WHERE of the slides that validate.")] = None,
    test: Annotated[str | None, typer.Option(help="WHERE of the slides to predict and score.")] = None,
    magnifications: MagnificationsOption = None,
    mpp: MppOption = None,
    prototypes: Annotated[
        str | None, typer.Option(help="kmeans, none, random or learned (head mmap).")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A head's own setting.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Train one head, predict the test slides and score them."""
    from mmap_st.data.readers import open_cohort
    from mmap_st.extract.store import FeatureStore
    from mmap_st.extract.windows import parse_magnifications
    from mmap_st.head.base import parse_settings
    from mmap_st.head.fit import FitRequest
    from mmap_st.head.fit import fit_head as fit
    from mmap_st.head.registry import head_method
    from mmap_st.head.run_folder import METRICS

    method = head_method(head)
    pairs = [*(set_ or []), *([f"prototypes={prototypes}"] if prototypes is not None else [])]
    request = FitRequest(
        encoder=encoder,
        method=method,
        settings=parse_settings(method, pairs),
        genes=genes,
        train=train,
        validation=val,
        test=test,
        mpps=parse_magnifications(magnifications, mpp),
        seed=seed,
    )
    with console.status() as tell:
        report = fit(open_cohort(cohort), FeatureStore.open(store), request, out, tell)
    for text in report.warnings:
        console.warn(text)
    if report.passed_over:
        console.say(f"{len(report.passed_over)} slides passed over (no counts, or not in the store)")
    results.show_metrics(report.metrics, head)
    console.show_reasons("failed", report.failed)
    console.show_paths([out / METRICS] if test else [out])
    raise typer.Exit(1 if report.failed else 0)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained head.")],
    store: StoreArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for one .h5ad a slide.")],
    slides: Annotated[str | None, typer.Option(help="Such as C4,B4; default: all that can be.")] = None,
) -> None:
    """Predict expression of slides in a store, sequenced or not."""
    from mmap_st.extract.store import FeatureStore
    from mmap_st.head.predict import predict_slides

    names = None if slides is None else [name.strip() for name in slides.split(",") if name.strip()]
    with console.status() as tell:
        report = predict_slides(run, FeatureStore.open(store), out, names, tell)
    console.show_reasons("passed over", report.passed_over)
    console.show_reasons("failed", report.failed)
    console.show_paths(list(report.written.values()))
    raise typer.Exit(1 if report.failed else 0)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or a folder of predictions.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the figures.")],
    genes: Annotated[
        str | None, typer.Option(help="Such as ERBB2,FASN; default: the best predicted.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="The run's feature store: adds prototype maps.")
    ] = None,
) -> None:
    """Draw measured beside predicted maps, and where the prototypes lie."""
    from mmap_st.extract.store import FeatureStore
    from mmap_st.report.run_report import report_run

    names = None if genes is None else [name.strip() for name in genes.split(",") if name.strip()]
    opened = None if store is None else FeatureStore.open(store)
    with console.status() as tell:
        tell("drawing")
        paths = report_run(run, out, names, store=opened)
    console.show_paths(paths)


@app.command()
def info(store: StoreArgument) -> None:
    """Show what is in a store."""
    from mmap_st.extract.contents import contents
    from mmap_st.extract.store import FeatureStore

    rows = [
        (
            line.slide,
            line.patient or "",
            str(line.spots),
            "" if line.source_mpp is None else f"{line.source_mpp:.4f} ({line.source_mpp_from})",
            line.encoder or "",
            line.mpp or "",
            line.state,
            str(line.invalid) if line.invalid else "",
            str(line.prototypes) if line.prototypes else "",
        )
        for line in contents(FeatureStore.open(store))
    ]
    columns = (
        "slide",
        "patient",
        "spots",
        "slide um/px",
        "encoder",
        "um/px",
        "state",
        "invalid",
        "prototype sets",
    )
    console.show_table(str(store), columns, rows)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")] = Path("demo"),
    seed: SeedOption = 0,
    patients: Annotated[int, typer.Option(min=5, help="Simulated patients, one section each.")] = 16,
) -> None:
    """Run the whole pipeline on simulated tissue: a few minutes on two cores."""
    from mmap_st.data.simulate import SimulationSettings
    from mmap_st.demo import run_demo

    with console.status() as tell, console.ExtractionProgress() as progress:
        result = run_demo(out, SimulationSettings(patients=patients), seed, tell, progress)
    results.show_metrics(result.metrics, "mmap")
    steps = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in result.seconds.items())
    console.say(f"{steps}; together {sum(result.seconds.values()):.0f} s")
    console.show_paths([result.run, *result.pictures])


if __name__ == "__main__":
    main()
