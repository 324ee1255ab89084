"""A store of several encoders."""

import shutil

import numpy as np
import pytest

import mmap_st as mm
from mmap_st.data.cohort import Cohort
from mmap_st.extract.imports import ImportRequest, import_features
from mmap_st.extract.store.reader import FeatureStore
from tests.conftest import Tiny

ENCODER = "efficientnet-lite0"
OTHER = "other"  # of another width, on every slide
PARTIAL = "partial"  # not on B1, with two spots of A1 that are not valid
NARROW = "narrow"  # at 0.5 um/px alone
COMMA = f"{OTHER},{NARROW}"  # one encoder, of this name
BOTH = f"{ENCODER},{OTHER}"


@pytest.fixture(scope="module")
def cohort(tiny: Tiny) -> Cohort:
    return mm.read_cohort(f"her2st:{tiny.her2st}")


@pytest.fixture(scope="module")
def store(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Three small sections, with embeddings by further encoders."""
    folder = tmp_path_factory.mktemp("several")
    path = folder / "features.zarr"
    shutil.copytree(tiny.store, path)
    store = FeatureStore.open(path)
    rng = np.random.default_rng(0)
    axes = rng.normal(size=(1280, 24)) / 10
    for encoder, mpps in ((OTHER, (0.5, 1.0)), (PARTIAL, (0.5, 1.0)), (NARROW, (0.5,)), (COMMA, (0.5, 1.0))):
        for mpp in mpps:
            features = folder / encoder / str(mpp)
            features.mkdir(parents=True)
            for slide in store.slides:
                if encoder == PARTIAL and slide == "B1":
                    continue
                embedding = store.slide(slide).embedding(ENCODER, mpp=mpp) @ axes
                embedding += 0.5 * rng.normal(size=embedding.shape)
                if encoder == PARTIAL and slide == "A1":
                    embedding[[3, 8]] = np.nan
                np.save(features / f"{slide}.npy", embedding.astype(np.float32))
            assert not import_features(ImportRequest(encoder, mpp, features), path).failed
    return FeatureStore.open(path)
