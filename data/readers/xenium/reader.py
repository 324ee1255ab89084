"""Spots and counts of a Xenium section: squares in which transcripts, or cells, are counted."""

from __future__ import annotations

from pathlib import Path

from mmap_st.data.cohort import LocalSlide
from mmap_st.data.counts import Counts, make_counts
from mmap_st.data.readers.finding import refuse_lognorm
from mmap_st.data.readers.xenium.alignment import read_alignment
from mmap_st.data.readers.xenium.bundle import (
    DEFAULT_UM,
    MATRICES,
    TRANSCRIPTS,
    find_alignment,
    matrix_of,
    read_pixel_um,
    tables_of,
)
from mmap_st.data.readers.xenium.cells import cell_squares, read_cell_counts
from mmap_st.data.readers.xenium.features import read_features
from mmap_st.data.readers.xenium.transcripts import Transcripts, open_transcripts
from mmap_st.data.spots import Spots
from mmap_st.errors import SpotsError
from mmap_st.files import absolute


def read_spots(slide: LocalSlide) -> Spots:
    """The middles of the squares in which something was counted, in pixels of the H&E.

    Raises
    ------
    SlideError
        If nothing was counted, or no matrix says where a place is in the H&E.
    """
    assert slide.spots is not None
    bundle = absolute(slide.spots).parent
    table = slide.counts or tables_of(bundle)
    if table is None:
        raise SpotsError(
            f"{bundle} has neither {TRANSCRIPTS[0]} nor {TRANSCRIPTS[1]} nor {MATRICES[0]}; copy what was"
            " counted from the run."
        )
    pixel_um = read_pixel_um(slide.spots)
    alignment = read_alignment(find_alignment(bundle, slide.image), pixel_um)
    side_um = slide.bin_um or DEFAULT_UM
    notes: tuple[str, ...] = ()
    if _is_of_cells(table):
        cells = cell_squares(table, side_um)
        squares, notes = cells.squares, cells.notes
    else:
        squares, _ = _transcripts(table).squares(side_um)
    return Spots(
        ids=squares.names,
        xy=alignment.pixels(squares.centres_um),
        array=squares.place.astype(float),
        pitch_um=side_um,
        technology=f"Xenium {side_um:g} um",
        mpp=alignment.mpp,
        notes=(*alignment.notes, *notes),
    )


def read_counts(slide: LocalSlide) -> Counts:
    """Counts of the genes in each square; controls are left out, and transcripts of low quality.

    Raises
    ------
    CountsError
        If nothing was counted, or a table cannot be read.
    """
    assert slide.counts is not None
    refuse_lognorm(slide)
    side_um = slide.bin_um or DEFAULT_UM
    if _is_of_cells(slide.counts):
        return read_cell_counts(slide, slide.counts, side_um)
    transcripts = _transcripts(slide.counts)
    squares, matrix = transcripts.counts(side_um)
    panel = transcripts.panel
    notes = [f"features that are not genes (controls), left out: {panel.controls}"] if panel.controls else ()
    return make_counts(squares.names, panel.genes, matrix, gene_ids=panel.gene_ids, notes=notes)


def _transcripts(path: Path) -> Transcripts:
    matrix = matrix_of(absolute(path).parent)
    return open_transcripts(path, None if matrix is None else read_features(matrix))


def _is_of_cells(table: Path) -> bool:
    return table.suffix.lower() == ".h5" or (table.is_dir() and not table.suffix)
