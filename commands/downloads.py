"""The command `mmap download`: parse, call one function of the library, show the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmap_st import console
from mmap_st.errors import RequestError

if TYPE_CHECKING:
    from mmap_st.data.download.run import DownloadReport


def download(
    dataset: Annotated[str | None, typer.Argument(metavar="DATASET", help="her2st or cmu-small.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; default: the data set's name.")] = None,
    sections: Annotated[str | None, typer.Option(help="Such as B4,C2; default: all.")] = None,
    what: Annotated[str | None, typer.Option(help="Of counts,spots,images,labels; default: all.")] = None,
    mirror: Annotated[str | None, typer.Option(metavar="URL", help="Fetch it from this copy.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show what can be downloaded.")] = False,
) -> None:
    """Download public data; the same command goes on where it was stopped."""
    if list_:
        _show_datasets(dataset)
        return
    if dataset is None:
        raise RequestError("Name a data set, such as her2st; `mmap download --list` shows them.")
    from mmap_st.data.download.datasets import find_dataset
    from mmap_st.data.download.run import DownloadRequest
    from mmap_st.data.download.run import download as fetch

    folder = out or Path(find_dataset(dataset).name)
    request = DownloadRequest(dataset, folder, _words(sections), _words(what), mirror)
    with console.DownloadProgress() as progress:
        report = fetch(request, progress)
    _show_report(report)
    console.show_paths([folder])
    raise typer.Exit(1 if report.failed else 0)


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _show_datasets(name: str | None) -> None:
    from mmap_st.data.download.datasets import DATASETS, KINDS, find_dataset

    if name is None:
        rows = [(dataset.name, dataset.about, dataset.page) for dataset in DATASETS.values()]
        console.show_table("data sets", ("name", "what it is", "about it"), rows)
        return
    dataset = find_dataset(name)
    title = f"{dataset.name}: {dataset.about}"
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
        console.warn(f"{path} was there and is not the data set's; it is now {path}.old")
    console.show_reasons("failed", report.failed, "file")
