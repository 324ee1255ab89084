"""Every head on simulated sections, embedded by a real encoder: it beats the training mean on a new patient."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmap_st.data.cohort import Cohort
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.interface import settings_values
from mmap_st.head.registry import HEADS
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.request import fit_request

#: Shorter than their defaults, where a head has these settings.
QUICK = {
    "epochs": 6, "width": 32, "members": 1, "learning_rate": 3e-3, "bottleneck": 64, "autoencoder_epochs": 2
}  # fmt: skip
ENCODER = "efficientnet-lite0"


@pytest.fixture(scope="module")
def with_tokens(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The simulated sections at one magnification, with a grid of tokens of each spot."""
    path = tmp_path_factory.mktemp("tokens") / "features.zarr"
    assert not extract_cohort(cohort, path, EncoderRequest(encoder_spec(ENCODER), tokens=2), (0.5,)).failed
    return FeatureStore.open(path)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "mean"])
def test_it_beats_the_training_mean(
    name: str, cohort: Cohort, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    store = request.getfixturevalue("with_tokens" if HEADS[name].tokens else "store")
    known = settings_values(HEADS[name].settings_type())
    pairs = [f"{key}={value}" for key, value in QUICK.items() if key in known]
    asked = fit_request(ENCODER, name, pairs=pairs, genes="hvg:12", validation="slide=D1", test="slide=E1")
    metrics = fit_head(cohort, store, asked, tmp_path / "run").metrics
    assert metrics.test.pcc_slide > 0.2
    if not name.startswith("hest-ridge"):  # it has no intercept: HEST-Benchmark looks at correlations alone
        assert metrics.test.mse < metrics.baseline_mean.mse
