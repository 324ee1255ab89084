"""Commands that say what something is, and make it one file: info, pack."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmap_st.commands import console
from mmap_st.commands import tables as results
from mmap_st.errors import RequestError, counted

if TYPE_CHECKING:
    from mmap_st.extract.store import FeatureStore


def info(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|STORE", help="A trained head (folder, file, hf-hub:ORG/NAME) or a feature store."
        ),
    ],
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Of a store: read everything, and compare it with its check sums."),
    ] = False,
    seal: Annotated[
        bool,
        typer.Option("--seal", help="With --verify: add check sums where an earlier version wrote none."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a trained head is and what it is valid for, or what is in a store."""
    from mmap_st.head.sharing import ModelCard
    from mmap_st.workflows import card_or_store

    if seal and not verify:
        raise RequestError("--seal records what was read as what is right; add --verify.")
    found = card_or_store(path)
    if not isinstance(found, ModelCard):
        _show_store(found, path, verify=verify, seal=seal, as_json=as_json)
        return
    if verify:
        raise RequestError(f"--verify is of a store, and {path} is a trained head; leave it out.")
    if as_json:
        console.say_json(found.as_json())
    else:
        results.show_card(found)


def _show_store(store: FeatureStore, path: Path, *, verify: bool, seal: bool, as_json: bool) -> None:
    from mmap_st.extract.store import list_contents

    lines = list(list_contents(store, verify=verify, seal=seal))
    damaged: dict[str, str] = {}
    for line in lines:
        if line.problem:
            damaged[line.slide] = " ".join(filter(None, (damaged.get(line.slide), line.problem)))
    if as_json:
        console.say_json({"slides": [asdict(line) for line in lines]})
        raise typer.Exit(1 if damaged else 0)
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
        for line in lines
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
    if not rows:
        console.say(f"{path} has no slides yet; `mmap extract` adds them.")
        return
    console.show_table(str(path), columns, rows)
    console.show_reasons("damaged", damaged)
    raise typer.Exit(1 if damaged else 0)


def pack(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN|STORE", help="Folder of a trained head, or a feature store."),
    ],
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The file to write, such as head.zip or features.zarr.zip."),
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a packed head, or store, that is there.")
    ] = False,
) -> None:
    """Write a trained head, or a feature store, into one file; commands take it as they take RUN or STORE."""
    from mmap_st.extract.store import is_store
    from mmap_st.workflows import pack_head, pack_store

    if not is_store(run):
        pack_head(run, file, overwrite=overwrite)
        console.show_paths([file])
        return
    report = pack_store(run, file, overwrite=overwrite)
    for name, what in report.left_out.items():
        console.warn(f"{name}: {what}; not packed")
    console.show_reasons("damaged, and not packed", report.failed)
    console.say(
        f"{counted(len(report.slides), 'slide')}, {counted(report.files, 'file')} of the store in one of"
        f" {console.size_of(report.bytes)}"
    )
    console.show_paths([file])
    raise typer.Exit(1 if report.failed else 0)
