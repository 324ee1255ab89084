"""Commands on cohorts: `mmap cohort` and `mmap download`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mmap_st.commands import console
from mmap_st.commands.examples import example
from mmap_st.commands.options import ValuesOption, parse_images, parse_patients, split_words
from mmap_st.errors import RequestError, agreeing, counted, in_sentences
from mmap_st.files import check_folder_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmap_st.data import Cohort, CohortSlide
    from mmap_st.data.download import DownloadReport


_WRITE = "write"
_PICTURES = "--pictures"

ImageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        metavar="[SLIDE=]PATH",
        help="The image that the spots were placed on; a folder of images named as the slides; or SLIDE=PATH,"
        " once for each slide.",
    ),
]
PatientOption = Annotated[
    list[str] | None,
    typer.Option(
        "--patient",
        metavar="[SLIDE=]PATIENT",
        help="Whose the slides are whose files do not say it; or SLIDE=PATIENT, once for each slide.",
    ),
]
BinOption = Annotated[
    float | None,
    typer.Option(
        "--bin-um",
        help="Side of the squares, in um, that transcripts (Xenium: 100) or bins of Visium HD are joined to.",
    ),
]


class CohortGroup(TyperGroup):
    """`mmap cohort READER:PATH` is `mmap cohort write READER:PATH`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, "-h", "--help"}:
            args = [_WRITE, *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


app = typer.Typer(
    cls=CohortGroup,
    help="Find slides and write a cohort: `mmap cohort READER:PATH --out FILE`; or check a cohort.\n\nOptions"
    " such as --image and --mpp: `mmap cohort write --help`. Readers: `mmap cohort --readers`.",
    epilog=example("cohort"),
)


@app.command(_WRITE, epilog=example("cohort write"))
def write(
    source: Annotated[
        str | None, typer.Argument(metavar="READER:PATH", help="Such as her2st:her2st/data.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The cohort file to write (.csv or .parquet).")
    ] = None,
    image: ImageOption = None,
    patient: PatientOption = None,
    values: ValuesOption = None,
    bin_um: BinOption = None,
    mpp: Annotated[
        float | None,
        typer.Option("--mpp", help="um/px of the images, for slides whose files do not say it, such as 0.5."),
    ] = None,
    pitch_um: Annotated[
        float | None,
        typer.Option(
            "--pitch-um", help="um between neighbouring spots, for readers that do not know it, such as 100."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file, with what was filled in there by hand.")
    ] = False,
    readers: Annotated[bool, typer.Option("--readers", help="List the readers.")] = False,
) -> None:
    """Find the slides at a path, survey their tables and write a cohort; the word `write` may be left out."""
    from mmap_st import workflows
    from mmap_st.data import alike_patients, check_cohort_out, refuse_to_lose, write_cohort
    from mmap_st.data.readers import READERS

    if readers:
        console.show_table("readers", ("name", "reads"), [(r.name, r.about) for r in READERS.values()], (1,))
        return
    if source is None or out is None:
        raise RequestError("Give READER:PATH and --out FILE; `mmap cohort --readers` lists the readers.")
    check_cohort_out(out)
    found = _read(source, image, patient, values, bin_um)
    if not overwrite:
        filled = (replace(row, mpp=mpp or row.mpp, pitch_um=pitch_um or row.pitch_um) for row in found.slides)
        refuse_to_lose(out, replace(found, slides=tuple(filled)))
    surveyed = workflows.survey_and_fill(found, mpp=mpp, pitch_um=pitch_um)
    slides, rows, problems, notes = [], [], {}, {}
    with workflows.show_progress() as progress:
        for one in surveyed:
            look, row = one.look, one.look.row
            slides.append(row)
            progress(f"looking at {row.slide}")
            # Values that are no counts can be meant: --values says so, now or later.
            hindering = [problem for problem in look.problems if problem != look.not_counts]
            if hindering:
                problems[row.slide] = in_sentences(hindering)
            seen = [*look.notes, *one.notes, *([look.not_counts] if look.not_counts else [])]
            if seen:
                notes[row.slide] = "; ".join(seen)
            scale = "" if look.mpp is None else f"{look.mpp.mpp:.4f} ± {look.mpp.standard_error:.4f}"
            rows.append(
                (
                    row.slide,
                    row.patient or "",
                    "yes" if row.image else "",
                    "yes" if row.counts else "",
                    "" if look.spots is None else str(len(look.spots)),
                    str(look.unmatched) if look.unmatched else "",
                    scale,
                )
            )
    found = replace(found, slides=tuple(slides))
    write_cohort(found, out)
    columns = ("slide", "patient", "image", "counts", "spots", "unmatched", "um/px from the spots")
    console.show_table(counted(len(found.slides), "slide"), columns, rows)
    for name, note in notes.items():
        console.warn(f"{name}: {note}")
    for note in (*alike_patients(row.patient for row in found.slides), *_without_image(found.slides)):
        console.warn(note)
    console.show_reasons("cannot be used", problems)
    console.show_paths([out])
    raise typer.Exit(1 if problems else 0)


@app.command("check", epilog=example("cohort check"))
def check(
    cohort: Annotated[
        str, typer.Argument(metavar="COHORT", help="A cohort file (CSV, Parquet; or its URL) or reader:path.")
    ],
    pictures: Annotated[
        Path | None, typer.Option(_PICTURES, help="Folder for a picture of each slide's spots.")
    ] = None,
    image: ImageOption = None,
    patient: PatientOption = None,
    values: ValuesOption = None,
    bin_um: BinOption = None,
    full: Annotated[
        bool, typer.Option("--full", help="Decode every tile of every image (default: 32 tiles of each).")
    ] = False,
) -> None:
    """Read all tables and look at each image; show what each slide is and what is wrong with it."""
    from mmap_st import workflows
    from mmap_st.data import alike_patients
    from mmap_st.extract.engine import preview_cohort
    from mmap_st.report import CohortCheck, check_cohort, summarise_genes

    if pictures is not None:
        check_folder_out(pictures, _PICTURES)
    slides = _read(cohort, image, patient, values, bin_um)
    result = CohortCheck()
    with workflows.show_progress() as progress:
        for number, one in enumerate(check_cohort(slides, full=full), start=1):
            progress(f"checked {one.row.slide} ({number} of {len(slides.slides)})")
            result.slides.append(one)
        result.notes += summarise_genes(result.slides)
        result.notes += [
            *alike_patients(row.patient for row in slides.slides),
            *_without_image(slides.slides),
        ]
        drawn = None
        if pictures is not None:
            drawn = preview_cohort(slides, None, pictures, progress=progress, option=_PICTURES)
    rows = [
        (
            one.row.slide,
            one.row.patient or "",
            one.technology,
            "" if one.size_px is None else f"{one.size_px[0]} x {one.size_px[1]}",
            "" if one.mpp is None else f"{one.mpp.mpp:.4g} ({one.mpp.source})",
            "" if one.spots is None else str(one.spots),
            "" if one.genes is None else str(len(one.genes)),
            str(one.unmatched) if one.unmatched else "",
            str(one.outside) if one.outside else "",
            "" if one.on_tissue is None else f"{one.on_tissue:.0%}",
            one.state,
        )
        for one in result.slides
    ]
    columns = (
        "slide", "patient", "technology", "px", "um/px", "spots", "genes", "unmatched", "outside",
        "on tissue", "state",
    )  # fmt: skip
    console.show_table(counted(len(rows), "slide"), columns, rows)
    for one in result.slides:
        for note in one.notes:
            console.warn(f"{one.row.slide}: {note}")
    for note in result.notes:
        console.say(note)
    console.show_reasons("problems", result.problems)
    if drawn is not None:
        if drawn.skipped_slides:
            console.say(
                f"{counted(len(drawn.skipped_slides), 'slide is', 'slides are')} not drawn (no image or no"
                " spots)"
            )
        console.show_reasons("not drawn", drawn.failed)
        console.show_paths(list(drawn.written.values()))
    raise typer.Exit(1 if result.problems else 0)


def _read(
    source: str, image: list[str] | None, patient: list[str] | None, values: str | None, bin_um: float | None
) -> Cohort:
    """The cohort that the options ask for."""
    from mmap_st import workflows

    return workflows.read_cohort(
        source, image=parse_images(image), values=values, bin_um=bin_um, patient=parse_patients(patient)
    )


def _without_image(slides: Sequence[CohortSlide]) -> list[str]:
    """What is to be done about slides that have spots, and no image that these lie on."""
    names = [row.slide for row in slides if row.image is None and row.spots is not None]
    if not names:
        return []
    from mmap_st.data import some

    are = agreeing(len(names), "no image is", "no images are")
    return [f"{some(names)}: {are} known, and spots are embedded from images; name them with --image"]


def download(
    dataset: Annotated[
        str | None, typer.Argument(metavar="DATASET", help="her2st, hest or cmu-small.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default: the data set's name.")] = None,
    sections: Annotated[str | None, typer.Option(help="Such as B4,C2; default: all.")] = None,
    what: Annotated[str | None, typer.Option(help="Of counts,spots,images,labels; default: all.")] = None,
    ids: Annotated[str | None, typer.Option(help="Samples of hest, such as TENX95,NCBI785.")] = None,
    mirror: Annotated[str | None, typer.Option(metavar="URL", help="Fetch from this copy.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what can be downloaded.")] = False,
) -> None:
    """Download public data; run the same command again to fetch what is still missing."""
    if list_:
        _show_datasets(dataset)
        return
    if dataset is None:
        raise RequestError("Name a data set, such as her2st; `mmap download --list` shows them.")
    from mmap_st.data.download import download as fetch
    from mmap_st.data.download import find_dataset
    from mmap_st.workflows import show_progress

    folder = out or Path(find_dataset(dataset).name)
    with show_progress(kind="files", unit="bytes") as progress:
        report = fetch(
            dataset,
            folder,
            sections=split_words(sections),
            kinds=split_words(what),
            mirror=mirror,
            ids=split_words(ids),
            progress=progress,
        )
    _show_report(report)
    console.show_paths([folder])
    raise typer.Exit(1 if report.failed else 0)


def _show_datasets(name: str | None) -> None:
    from mmap_st.data.download import DATASETS, KINDS, find_dataset, list_samples

    if name is None:
        rows = [(dataset.name, dataset.about, dataset.page) for dataset in DATASETS.values()]
        console.show_table("data sets", ("name", "what it is", "page"), rows, left=(1, 2))
        return
    dataset = find_dataset(name)
    title = f"{dataset.name}: {dataset.about}"
    if dataset.name == "hest":
        samples = [(name, f"{size / 1e9:.2f}") for name, size in list_samples().items()]
        console.show_table(title, ("id", "GB"), samples)
        return
    if not dataset.sections:
        console.show_table(title, ("file", "bytes"), [(file.path, str(file.size)) for file in dataset.files])
        return
    # Every section has an image, whether or not its name is known here.
    has = {(section, "images") for section in dataset.sections if dataset.listing}
    has |= {(file.section or "", file.kind) for file in dataset.files}
    table = [
        (section, *("yes" if (section, kind) in has else "" for kind in KINDS))
        for section in dataset.sections
    ]
    console.show_table(title, ("section", *KINDS), table)


def _show_report(report: DownloadReport) -> None:
    counts = [
        (len(report.fetched), "fetched"),
        (len(report.kept), "there before"),
        (len(report.failed), "failed"),
    ]
    shown = ", ".join(f"{number} {what}" for number, what in counts if number)
    console.say(f"files: {shown}; {report.received / 1e6:.1f} MB in {report.seconds:.0f} s")
    for path in report.replaced:
        console.warn(f"{path} was there and is not the file of the data set; it is now {path}.old")
    console.show_reasons("failed", report.failed, "file")
