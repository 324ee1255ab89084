"""Slides leave memory when nobody uses them any more: a cohort has more of them than fit into it."""

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.runs import prediction


@pytest.fixture
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_garbage_collection")
@pytest.mark.parametrize("joined", [False, True])
def test_what_is_made_once_of_a_slide_does_not_keep_it(
    head_slides: Callable[..., list[HeadSlide]], joined: bool
) -> None:
    slide = head_slides(slides=1)[0]
    if joined:
        slide = replace(slide, others=(replace(slide, target=None),))
    assert len(slide.by_encoder) == 1 + joined
    assert slide.by_encoder[0] is slide or joined
    assert slide.by_magnification
    assert slide.scaler is not None
    gone = weakref.ref(slide)
    del slide
    assert gone() is None


@pytest.mark.usefixtures("_no_garbage_collection")
def test_a_slide_that_is_predicted_is_gone_before_the_next_one_is_read(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[weakref.ref[HeadSlide]] = []
    predict = prediction.predict_whole

    def watched(prepared: Any) -> Any:
        assert [slide() for slide in seen] == [None] * len(seen)
        seen.append(weakref.ref(prepared.slide))
        return predict(prepared)

    monkeypatch.setattr(prediction, "predict_whole", watched)
    prediction.predict_slides(tiny.run, FeatureStore.open(tiny.store), tmp_path / "out")
    assert len(seen) == 3
