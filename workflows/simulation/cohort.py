"""Write a simulated cohort as files, in the layout of the public her2st repository."""

from __future__ import annotations

import gzip
import multiprocessing
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.workflows.simulation.expression import (
    GeneEffects,
    SpotContext,
    draw_counts,
    draw_effects,
    spot_context,
    within_section,
)
from mmap_st.workflows.simulation.tissue import Tissue, grow_tissue, paint_tissue, sample_field

_PITCH_UM = 200.0
_MEAN_LIBRARY = 6000.0


@dataclass(frozen=True)
class SimulationSettings:
    """What is simulated.

    Attributes
    ----------
    patients
        Number of patients, one section each.
    size_um
        Side of a section, in micrometres; spots lie 200 um apart.
    genes_per_kind
        Genes of each kind (fine, coarse, global, flat).
    coarse
        False: tissue has no structure larger than nests, and the surroundings of a spot have no effect.
    slide_factor
        False: all sections are of one composition, and it has no effect; nor have the small differences in
        composition that chance leaves between sections.
    mpp
        Micrometres per pixel of the pictures, before a small variation from section to section.
    """

    patients: int = 16
    size_um: float = 3200.0
    genes_per_kind: int = 50
    coarse: bool = True
    slide_factor: bool = True
    mpp: float = 0.7


def simulate_cohort(
    root: Path,
    settings: SimulationSettings,
    seed: int,
    on_slide: Callable[[str], None] = lambda name: None,
    *,
    processes: int = 1,
) -> None:
    """Write pictures, spot files and counts of a cohort below `root`.

    The same `seed` gives the same files, by however many processes.

    Parameters
    ----------
    root
        Folder to write to, created where it is missing; ``her2st:root`` reads it.
    settings
        What is simulated.
    seed
        Seed of all randomness.
    on_slide
        Called with a section's name after it is written.
    processes
        Sections simulated at a time.
    """
    write = partial(_write_section, root, settings, seed)
    if processes == 1:
        for index in range(settings.patients):
            on_slide(write(index))
        return
    # Not forked: a fork of a process that holds other libraries' threads can hang.
    context = multiprocessing.get_context("spawn")
    # Ctrl-C is for this process: it ends the others once they have finished a section.
    with ProcessPoolExecutor(processes, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        for name in pool.map(write, range(settings.patients)):
            on_slide(name)


def _write_section(root: Path, settings: SimulationSettings, seed: int, index: int) -> str:
    """Write one section of the cohort; returns its name."""
    effects = draw_effects(
        np.random.default_rng([seed, 0]),
        settings.genes_per_kind,
        coarse=settings.coarse,
        slide_factor=settings.slide_factor,
    )
    shares = tumour_shares(settings, seed)
    name = f"{_patient_letters(index)}1"
    rng = np.random.default_rng([seed, 2, index])
    tissue = grow_tissue(rng, settings.size_um, float(shares[index]), coarse=settings.coarse)
    mpp = settings.mpp * float(rng.uniform(0.97, 1.03))
    array, xy_um = _spots(tissue)
    context = spot_context(tissue, xy_um)
    if not settings.slide_factor:
        context = within_section(context)
    counts_rng = np.random.default_rng([seed, 3, index])
    _write_picture(root, name, rng, tissue, mpp)
    _write_spots(root, name, array, xy_um / mpp)
    _write_counts(root, name, counts_rng, array, context, effects)
    return name


def tumour_shares(settings: SimulationSettings, seed: int) -> NDArray[np.float64]:
    """(patients,) share of tumour cells in each section: the slide factor that is planted."""
    if not settings.slide_factor:
        return np.full(settings.patients, 0.5)
    # Spread evenly over the range: few sections must still cover it.
    order = np.random.default_rng([seed, 1]).permutation(settings.patients)
    shares: NDArray[np.float64] = 0.12 + 0.76 * (order + 0.5) / settings.patients
    return shares


def _patient_letters(index: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def _spots(tissue: Tissue) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Array coordinates (n, 2) and centres in um (n, 2) of the spots on tissue."""
    per_side = int(tissue.size_um // _PITCH_UM)
    ticks = np.arange(1, per_side + 1, dtype=np.int64)
    array = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    xy_um = np.asarray((array - 0.5) * _PITCH_UM, dtype=np.float64)
    on_tissue = sample_field(tissue.outline, xy_um) > 0
    return array[on_tissue], xy_um[on_tissue]


def _write_picture(root: Path, name: str, rng: np.random.Generator, tissue: Tissue, mpp: float) -> None:
    folder = root / "ST-imgs" / name[:-1] / name
    folder.mkdir(parents=True, exist_ok=True)
    paint_tissue(rng, tissue, mpp).save(folder / f"{name}_HE.jpg", quality=90)


def _write_spots(root: Path, name: str, array: NDArray[np.int64], pixel: NDArray[np.float64]) -> None:
    folder = root / "ST-spotfiles"
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    lines += [
        f"{x}\t{y}\t{x:.3f}\t{y:.3f}\t{px:.2f}\t{py:.2f}\t1"
        for (x, y), (px, py) in zip(array, pixel, strict=True)
    ]
    (folder / f"{name}_selection.tsv").write_text("\n".join(lines) + "\n")


def _write_counts(
    root: Path,
    name: str,
    rng: np.random.Generator,
    array: NDArray[np.int64],
    context: SpotContext,
    effects: GeneEffects,
) -> None:
    folder = root / "ST-cnts"
    folder.mkdir(parents=True, exist_ok=True)
    counts = draw_counts(rng, context, effects, _MEAN_LIBRARY)
    lines = ["\t" + "\t".join(effects.names)]
    lines += [f"{x}x{y}\t" + "\t".join(map(str, row)) for (x, y), row in zip(array, counts, strict=True)]
    # mtime=0 keeps the file the same from run to run.
    with gzip.GzipFile(folder / f"{name}.tsv.gz", "wb", mtime=0) as file:
        file.write(("\n".join(lines) + "\n").encode())
