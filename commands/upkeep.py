"""Commands that look after feature stores: merge, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmap_st.commands import console
from mmap_st.commands.options import StoreArgument
from mmap_st.errors import counted


def merge(
    stores: Annotated[
        list[Path], typer.Argument(metavar="STORE...", help="Feature stores, folders or packed.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The store that they are merged into, new or not.")],
) -> None:
    """Copy the slides of feature stores into one, without embedding anything again; or unpack one."""
    from mmap_st.workflows import merge_stores

    report = merge_stores(stores, out)
    for name, what in report.left_out.items():
        console.warn(f"{name}: {what}; not merged")
    names = sorted(report.copied.keys() | report.there.keys())
    rows = [(name, str(report.copied.get(name, 0)), str(report.there.get(name, 0))) for name in names]
    if rows:
        console.show_table("magnifications", ("slide", "copied", "there before"), rows)
    console.show_reasons("failed", report.failed)
    console.show_paths([out])
    raise typer.Exit(1 if report.failed else 0)


def gc(
    store: StoreArgument,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")
    ] = False,
    incomplete: Annotated[
        bool, typer.Option("--incomplete", help="Also magnifications that are not complete.")
    ] = False,
    prototypes: Annotated[
        bool, typer.Option("--prototypes", help="Also prototypes of embeddings that are not there any more.")
    ] = False,
) -> None:
    """Remove what no one needs of a feature store: drafts, journals of finished work, free locks."""
    from mmap_st.workflows import tidy_store

    report = tidy_store(store, incomplete=incomplete, prototypes=prototypes, dry_run=dry_run)
    rows = [(str(one.path), one.what, console.size_of(one.bytes)) for one in report.leftovers]
    if rows:
        console.show_table(
            "would be removed" if dry_run else "removed", ("path", "what", "size"), rows, left=(1,)
        )
    total = console.size_of(sum(one.bytes for one in report.leftovers))
    console.say(f"{counted(len(rows), 'leftover')}, {total}{' would be' if dry_run else ''} freed")
    if report.foreign:
        console.warn(
            f"{counted(len(report.foreign), 'file is', 'files are')} not the store's, and left alone:"
            f" {', '.join(map(str, report.foreign[:5]))}{', ...' if len(report.foreign) > 5 else ''}"
        )
    console.show_reasons("left alone", report.locked)
    console.show_reasons("damaged, and left alone", report.failed)
    raise typer.Exit(1 if report.failed or report.locked else 0)
