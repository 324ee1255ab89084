"""Every head on simulated sections, embedded by a real encoder: it beats the training mean on a new patient."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmap_st.data.cohort import Cohort
from mmap_st.extract.store import FeatureStore
from mmap_st.head.base import settings_values
from mmap_st.head.fit import fit_head
from mmap_st.head.registry import HEADS
from mmap_st.head.request import fit_request

#: Shorter than their defaults, where a head has these settings.
QUICK = {
    "epochs": 6, "width": 32, "members": 1, "learning_rate": 3e-3, "bottleneck": 64, "autoencoder_epochs": 2
}  # fmt: skip
#: The mean itself, and what needs tokens (tests/head/test_tokens.py).
OTHERS = ("mean", "tcgn")


@pytest.mark.parametrize("name", [name for name in HEADS if name not in OTHERS])
def test_it_beats_the_training_mean(name: str, cohort: Cohort, store: FeatureStore, tmp_path: Path) -> None:
    known = settings_values(HEADS[name].settings_type())
    pairs = [f"{key}={value}" for key, value in QUICK.items() if key in known]
    request = fit_request("efficientnet-lite0", name, pairs=pairs, genes="hvg:12", test="slide=E1")
    metrics = fit_head(cohort, store, request, tmp_path / "run").metrics
    assert metrics["test"]["pcc_slide"] > 0.2
    if name != "hest-ridge":  # it has no intercept: HEST-Benchmark looks at correlations alone
        assert metrics["test"]["mse"] < metrics["baseline_mean"]["mse"]
