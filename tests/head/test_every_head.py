"""What holds for every head that can be named, and what networks share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmap_st.errors import HeadError
from mmap_st.head.interface import HeadMethod, Shape, make_settings, plan_validation, settings_values
from mmap_st.head.registry import HEADS
from mmap_st.head.scoring.metrics import slide_metrics

#: Small and quick, where a head can be.
QUICK = {"width": 32, "heads": 4, "epochs": 10, "learning_rate": 3e-3}
#: Heads whose mechanism cannot repeat its training spots: they average over others, predict one value, or see one
#: magnification where two make the targets.
CANNOT_OVERFIT = ("mean", "st-net")


def silent(text: str) -> None:
    pass


def quick(method: HeadMethod, **changes):
    """Settings of a head for tests; what a head does not have is left out."""
    known = settings_values(method.settings_type())
    return make_settings(method, {k: v for k, v in {**QUICK, **changes}.items() if k in known})


def with_tokens(slides):
    """The slides with a 2 x 2 grid of tokens whose mean is the embedding."""
    rng = np.random.default_rng(5)

    def of(slide):
        n, magnifications, width = slide.embedding.shape
        noise = 0.3 * rng.normal(size=(n, magnifications, 4, width)).astype(np.float32)
        noise -= noise.mean(axis=2, keepdims=True)
        return replace(slide, tokens=slide.embedding[:][:, :, None] + noise)

    return [of(slide) for slide in slides]


def fitted(method: HeadMethod, train, validation=(), seed: int = 0, **changes):
    settings = quick(method, **changes)
    return method.fit(train, plan_validation(train, validation), settings, seed, silent)


def pcc(head, slide) -> float:
    return slide_metrics(head.predict(slide), slide.targets.dense()).pcc


@pytest.fixture(params=list(HEADS.values()), ids=list(HEADS))
def method(request: pytest.FixtureRequest) -> HeadMethod:
    return request.param


def test_it_learns_and_is_saved_and_loaded(method: HeadMethod, head_slides) -> None:
    *train, test = with_tokens(head_slides(slides=4, spots=80))
    head = fitted(method, train)
    predicted = head.predict(test)
    if method.name != "mean":
        assert pcc(head, test) > 0.3
    settings = make_settings(method, settings_values(quick(method)))
    shape = Shape(2, 12, 5, token_width=12)
    loaded = method.load(head.tensors(), settings, shape)
    np.testing.assert_allclose(loaded.predict(test), predicted, atol=1e-5)
    assert [part.slide.name for part in head.held_out()] == [slide.name for slide in train]
    for part in head.held_out():
        assert np.isfinite(part.predicted).all()


def test_it_repeats_a_tiny_set(method: HeadMethod, head_slides) -> None:
    if method.name in CANNOT_OVERFIT:
        pytest.skip("its mechanism does not allow it")
    (slide,) = with_tokens(head_slides(slides=1, spots=40, width=4, noise=0.0))
    longer = {"epochs": 100, "dropout": 0.0, "input_dropout": 0.0, "weight_decay": 0.0, "alpha": 1e-3}
    longer |= {"neighbours": 1}
    head = fitted(method, [slide], [slide], **longer)
    assert pcc(head, slide) > 0.95


def test_the_same_seed_gives_the_same_head(method: HeadMethod, head_slides) -> None:
    train = with_tokens(head_slides(slides=3, spots=40))
    one, two = (fitted(method, train, train[:1], epochs=2).predict(train[0]) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_spots_and_genes_may_lack(method: HeadMethod, head_slides, lacking) -> None:
    *train, test = with_tokens(head_slides(slides=4, spots=40))
    train[0] = lacking(train[0], genes=() if method.name.startswith("hest-ridge") else (1,), spots=(0, 3))
    invalid = train[1].valid.copy()
    invalid[2] = False
    embedding = train[1].embedding.copy()
    embedding[2] = np.nan
    train[1] = replace(train[1], valid=invalid, embedding=embedding)
    head = fitted(method, train, train[:1], epochs=2)
    assert np.isfinite(head.predict(test)).all()
    of_invalid = head.predict(train[1])
    assert np.isnan(of_invalid[2]).all()
    assert np.isfinite(np.delete(of_invalid, 2, axis=0)).all()


def test_no_target_of_the_slide_is_looked_at(method: HeadMethod, head_slides) -> None:
    *train, test = with_tokens(head_slides(slides=3, spots=40))
    head = fitted(method, train, train[:1], epochs=2)
    np.testing.assert_array_equal(head.predict(test), head.predict(replace(test, target=None)))


def test_a_slide_with_no_target_at_all_is_refused(method: HeadMethod, head_slides, lacking) -> None:
    (slide,) = with_tokens(head_slides(slides=1, spots=20))
    with pytest.raises(HeadError, match="target"):
        fitted(method, [lacking(slide, spots=tuple(range(20)))])
