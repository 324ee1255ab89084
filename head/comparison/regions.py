"""How well predicted expression tells the regions apart that a pathologist drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

#: Labels that name no region.
UNDETERMINED = ("", "undetermined", "unknown", "na", "nan")
_COMPONENTS = 20
_FEWEST_SPOTS = 10


def region_agreement(
    predicted: NDArray[np.float32], ids: Sequence[str], labels: Mapping[str, str]
) -> float | None:
    """Adjusted Rand index of clustered predictions and a pathologist's labels.

    Labelled spots are clustered on 20 principal components of their predicted expression by k-means (10
    starts, seed 0) into as many clusters as there are labels, as HisToGene and Hist2ST did; the index is
    Hubert and Arabie's (1985): 1 for the same regions, 0 on average for chance.

    Parameters
    ----------
    predicted
        (n, G); rows of spots that are not valid are NaN.
    ids
        (n,) of the spots.
    labels
        By spot id; spots without one, or whose label names no region, are left out.

    Returns
    -------
    The index; None where fewer than 2 regions or 10 spots are left.
    """
    known = {spot: label for spot, label in labels.items() if label.strip().lower() not in UNDETERMINED}
    rows = [i for i, spot in enumerate(ids) if spot in known and np.isfinite(predicted[i]).all()]
    regions = [known[ids[i]] for i in rows]
    number = len(set(regions))
    if number < 2 or len(rows) < _FEWEST_SPOTS:
        return None
    values = predicted[rows].astype(np.float64)
    if not (np.ptp(values, axis=0) > 0).any():
        return 0.0  # one prediction for all spots: one cluster
    reduced = PCA(min(_COMPONENTS, *values.shape), svd_solver="full").fit_transform(values)
    clusters = KMeans(number, n_init=10, random_state=0).fit_predict(reduced)
    return float(adjusted_rand_score(regions, clusters))
