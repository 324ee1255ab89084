"""Gene panels: the ordered list of genes that a head predicts, chosen on training slides only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.counts import Counts
from mmap_st.data.normalise import LOG1P_10K, NORMALISATIONS
from mmap_st.data.spots import duplicates, some
from mmap_st.errors import PanelError

DEFAULT_PANEL = "hvg:250"


@dataclass(frozen=True)
class Panel:
    """Genes in order, how they were chosen, and on which slides (none for a file)."""

    genes: tuple[str, ...]
    how: str
    slides: tuple[str, ...] = ()


def choose_panel(text: str, training: Mapping[str, Counts], normalisation: str = LOG1P_10K) -> Panel:
    """Choose the genes that ``--genes`` asks for.

    Parameters
    ----------
    text
        ``all``: every gene that all training slides measured; ``hvg:N``: the N of greatest variance of
        targets over the training spots, greatest first; ``mean:N``: the N of greatest mean; or the path of
        a file with one gene a line.
    training
        Counts of the training slides, by name. Spots with an empty library do not count.
    normalisation
        Of the targets, see `mmap_st.data.normalise`.

    Raises
    ------
    PanelError
        If the request is not one of these, or asks for more genes than there are.
    """
    kind, colon, number = text.partition(":")
    if text == "all" or (colon and kind in ("hvg", "mean") and not Path(text).exists()):
        genes, mean, variance = target_moments(training, normalisation)
        if text == "all":
            return Panel(genes, text, tuple(training))
        score = variance if kind == "hvg" else mean
        return Panel(_greatest(genes, score, _parse_number(text, number)), text, tuple(training))
    return read_panel(Path(text), {gene for counts in training.values() for gene in counts.genes})


def read_panel(path: Path, known: set[str]) -> Panel:
    """Read a panel file: one gene a line, in order; genes that no training slide has are an error."""
    if not path.is_file():
        raise PanelError(
            f"--genes {path}: there is no such file; give all, hvg:N, mean:N or a file with one gene a line."
        )
    genes = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not genes:
        raise PanelError(f"{path} lists no genes; write one gene a line.")
    if duplicates(genes):
        raise PanelError(f"{path} lists genes more than once: {some(duplicates(genes))}.")
    unknown = [gene for gene in genes if gene not in known]
    if unknown:
        raise PanelError(
            f"{path}: {len(unknown)} of {len(genes)} genes are on no training slide: {some(unknown)};"
            " remove them or check the gene names."
        )
    return Panel(tuple(genes), f"file {path.name}")


def target_moments(
    training: Mapping[str, Counts], normalisation: str = LOG1P_10K
) -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Genes that all slides measured, with mean and variance (g,) of targets over all their spots pooled."""
    if not training:
        raise PanelError("no training slide has counts; a panel is chosen on training slides.")
    first, *others = training.values()
    shared = set(first.genes).intersection(*(counts.genes for counts in others))
    genes = tuple(gene for gene in first.genes if gene in shared)
    if not genes:
        raise PanelError("the training slides have no gene in common; check their gene names.")
    spots, total, squares = 0, np.zeros(len(genes)), np.zeros(len(genes))
    for counts in training.values():
        columns, _ = counts.columns_of(genes)
        values = NORMALISATIONS[normalisation](counts, columns)
        spots += int((counts.library > 0).sum())
        total += values.sum(axis=0)
        squares += values.multiply(values).sum(axis=0)
    mean = total / max(spots, 1)
    return genes, mean, np.maximum(squares / max(spots, 1) - mean**2, 0.0)


def _greatest(genes: Sequence[str], score: NDArray[np.float64], number: int) -> tuple[str, ...]:
    if number > len(genes):
        raise PanelError(f"{number} genes are asked for; the training slides share {len(genes)}.")
    order = sorted(range(len(genes)), key=lambda i: (-score[i], genes[i]))
    return tuple(genes[i] for i in order[:number])


def _parse_number(text: str, number: str) -> int:
    if not number.isdecimal() or int(number) < 1:
        raise PanelError(f"--genes {text}: give the number of genes after the colon, such as hvg:250.")
    return int(number)
