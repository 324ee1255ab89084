"""Commands that look after feature stores: merge, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmap_st.commands import console


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
