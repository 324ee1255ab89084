"""Heads that are trained on a card: they learn what they learn on a CPU, and predict there once saved.

``MMAP_TEST_DEVICE=cpu`` runs the same code without a card, as a rehearsal.
"""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmap_st.head.interface import HeadMethod, Shape, make_settings, plan_validation, settings_values
from mmap_st.head.registry import HEADS

DEVICE = os.environ.get("MMAP_TEST_DEVICE", "cuda")
pytestmark = pytest.mark.skipif(
    DEVICE == "cuda" and not torch.cuda.is_available(), reason="no NVIDIA card answers here"
)

TRAINED = {name: method for name, method in HEADS.items() if hasattr(method.settings_type(), "device")}
#: Without dropout, which each device draws in its own way. Few epochs, since what rounding does grows with each.
QUICK = {"width": 32, "heads": 4, "epochs": 3, "learning_rate": 1e-3, "dropout": 0.0, "input_dropout": 0.0}
MOST = 0.02


@pytest.fixture
def slides(head_slides):
    """Four that train, validate and test, with a grid of tokens for the heads that need one."""
    rng = np.random.default_rng(5)

    def with_tokens(slide):
        noise = rng.normal(size=(*slide.embedding.shape[:2], 4, slide.embedding.shape[2]))
        return replace(slide, tokens=slide.embedding[:][:, :, None] + 0.3 * noise.astype(np.float32))

    return [with_tokens(slide) for slide in head_slides(slides=4, spots=60)]


def settings_on(method: HeadMethod, device: str):
    known = settings_values(method.settings_type())
    return make_settings(method, {k: v for k, v in {**QUICK, "device": device}.items() if k in known})


def fitted(method: HeadMethod, slides, device: str, *, validate: bool = True):
    *train, validation = slides[:3] if validate else (*slides[:3], None)
    plan = plan_validation(train, [validation] if validate else [])
    return method.fit(train, plan, settings_on(method, device), 0, lambda text: None)


@pytest.fixture(params=list(TRAINED.values()), ids=list(TRAINED))
def method(request: pytest.FixtureRequest) -> HeadMethod:
    return request.param


def test_it_learns_what_it_learns_on_a_cpu(method: HeadMethod, slides, record_property) -> None:
    found, expected = (fitted(method, slides, device) for device in (DEVICE, "cpu"))
    for name in ("training_loss", "validation_mse"):
        a, b = (np.array([row[name] for row in head.history]) for head in (found, expected))
        record_property(name, float(np.nanmax(np.abs(a / b - 1))))
        np.testing.assert_allclose(a, b, rtol=MOST)
    if found.chosen != expected.chosen:  # two epochs that are as good as each other
        return
    a, b = (head.predict(slides[3]) for head in (found, expected))
    apart = float(np.linalg.norm(a - b) / np.linalg.norm(b - b.mean(axis=0)))
    record_property("relative", apart)
    assert apart < MOST


def test_it_predicts_on_a_cpu_once_saved(method: HeadMethod, slides, record_property) -> None:
    head = fitted(method, slides, DEVICE, validate=False)
    tensors = head.tensors()
    assert all(isinstance(value, np.ndarray) for value in tensors.values())
    shape = Shape(2, 12, 5, token_width=12)
    loaded = method.load(tensors, settings_on(method, DEVICE), shape)
    a, b = head.predict(slides[3]), loaded.predict(slides[3])
    record_property("furthest", float(np.abs(a - b).max()))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    for part in head.held_out():
        assert np.isfinite(part.predicted).all()
