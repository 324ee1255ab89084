"""A cohort whose every name is a trap: for terminals, for rich, for matplotlib, for HTML and for people."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from mmap_st.errors import printable

#: Escape sequences, links, line ends, marks of direction, markup, emoji codes, formulas, HTML, odd ends.
TRAPS = (
    "\x1b[31mred\x1b[0m",
    "\x1b]8;;http://e.org\x07click\x1b]8;;\x07",
    "good\rfake",
    "A\nerror: fake",
    "\u202ecba\u202c",
    "\u2066x\u2069\u200b\ufeff",
    "\x9b31mc1",
    "[red]x[/red]",
    "[/]",
    "[link=http://e.org]y[/link]",
    ":dna:",
    "$\\frac{$",
    "$x^{$ & <b>bold</b>",
    "end\\",
)
ENCODER = "\x1b[1m[bold]$e^{$"


def unseen(text: str) -> list[str]:
    """Characters of an output that no terminal should get, or that no reader would see."""
    return [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]


def shown(name: str) -> str:
    return printable(name)


def write_cohort_of_traps(folder: Path, spots: int = 36) -> Path:
    """A cohort of one slide per trap, of as many patients, with the traps as genes; and features of each."""
    rng = np.random.default_rng(0)
    side = int(np.sqrt(spots))
    folder.mkdir(parents=True)
    Image.fromarray(rng.integers(60, 255, (700, 700, 3), np.uint8)).save(folder / "image.png")
    ids = [f"s{i}" for i in range(spots)]
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    places = {"id": ids, "x": 50.0 + 100 * x.ravel(), "y": 50.0 + 100 * y.ravel()}
    pl.DataFrame(places).write_csv(folder / "spots.csv")
    rows = []
    for number, name in enumerate(TRAPS):
        counts = rng.poisson(4, (spots, len(TRAPS)))
        table = pl.DataFrame({"id": ids} | {gene: counts[:, i] for i, gene in enumerate(TRAPS)})
        table.write_csv(folder / f"{number}_counts.csv")
        labels = pl.DataFrame({"id": ids, "label": [TRAPS[i % 3] for i in range(spots)]})
        labels.write_csv(folder / f"{number}_labels.csv")
        rows.append(
            {
                "slide": name, "patient": f"P{name}", "image": "image.png", "spots": "spots.csv",
                "counts": f"{number}_counts.csv", "reader": "table", "mpp": 1.0, "labels": f"{number}_labels.csv",
            }
        )  # fmt: skip
    pl.DataFrame(rows).write_csv(folder / "cohort.csv")
    return folder / "cohort.csv"
