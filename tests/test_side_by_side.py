"""Tests that run side by side take a core each."""

import os

import numpy as np
import pytest
import scipy.linalg
import torch
from threadpoolctl import threadpool_info


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="tests do not run side by side")
def test_libraries_compute_on_as_many_threads_as_the_environment_says() -> None:
    """A library that is loaded before tests/conftest.py says so takes all cores, and waits for them."""
    wanted = int(os.environ["OMP_NUM_THREADS"])
    scipy.linalg.cho_factor(np.eye(2) @ np.eye(2))
    pools = threadpool_info()
    assert {"blas", "openmp"} <= {pool["user_api"] for pool in pools}
    assert [pool for pool in pools if pool["num_threads"] > wanted] == []
    assert torch.get_num_threads() <= wanted
