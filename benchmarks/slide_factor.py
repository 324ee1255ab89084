"""Measure whether a head's predictions of held-out slides tell the slide factor that simulated tissue has.

`python benchmarks/slide_factor.py RUN --patients 16 --seed 0`, where RUN is a folder of `mmap evaluate` on a
cohort that was simulated with these settings. The factor is the section's share of tumour cells; what the
head says of it is the first principal component, over slides, of the mean predicted expression of the genes
that depend on it. With `--ablate` in RUN, the variants are shown too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mmap_st.head.runs.prediction_files import MEASURED, UNS, read_prediction
from mmap_st.head.runs.run_folder import PREDICTIONS
from mmap_st.workflows.simulation import SimulationSettings
from mmap_st.workflows.simulation.cohort import tumour_shares


def slide_means(folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Slides, and their mean (slides, genes) predicted and measured expression of the GLOBAL genes."""
    names, predicted, measured = [], [], []
    for file in sorted(folder.glob("*.h5ad")):
        table = read_prediction(file)
        genes = [str(gene).startswith("GLOBAL") for gene in table.var_names]
        names.append(str(table.uns[UNS]["slide"]))
        predicted.append(np.nanmean(table.X[:, genes], axis=0))
        measured.append(np.nanmean(table.layers[MEASURED][:, genes], axis=0))
    return names, np.array(predicted), np.array(measured)


def number_of(name: str) -> int:
    """Of a section: patients are named A to Z, AA, AB, ..., and have one section each, A1."""
    number = 0
    for letter in name.rstrip("1"):
        number = 26 * number + ord(letter) - ord("A") + 1
    return number - 1


def main() -> None:
    """Print one line a variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--patients", type=int, default=SimulationSettings().patients)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    shares = tumour_shares(SimulationSettings(patients=arguments.patients), arguments.seed)
    print("| variant | correlation with the planted factor | with the measured mean, mean over genes |")
    print("| --- | --- | --- |")
    for folder in [arguments.run, *sorted(arguments.run.glob("ablations/*"))]:
        names, predicted, measured = slide_means(folder / PREDICTIONS)
        planted = shares[[number_of(name) for name in names]]
        centred = predicted - predicted.mean(axis=0)
        component = np.linalg.svd(centred, full_matrices=False)[0][:, 0]
        factor = abs(np.corrcoef(component, planted)[0, 1])
        by_gene = [np.corrcoef(x, y)[0, 1] for x, y in zip(predicted.T, measured.T, strict=True)]
        name = "as it is" if folder == arguments.run else folder.name
        print(f"| {name} | {factor:.3f} | {np.mean(by_gene):.3f} |")


if __name__ == "__main__":
    main()
