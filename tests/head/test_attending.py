"""What spots attended to is told beside predictions, and changes none of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pytest

import mmap_st as mm
from mmap_st.head import HeadSlide
from mmap_st.head.attending import Attention, predict_and_attend
from mmap_st.head.joined import JoinedHead
from mmap_st.workflows import HeadRun
from tests.conftest import Tiny

ENCODER = "efficientnet-lite0"


def test_every_spot_shares_out_its_attention(attending: HeadRun, tiny: Tiny, tmp_path: Path) -> None:
    table = attending.predict(tiny.store, "B1", progress=False)
    attention = table.obsm["attention"]
    assert attention.dtype == np.float16
    assert len(attention) == len(table)
    assert attention.sum(axis=1).astype(np.float32) == pytest.approx(np.ones(len(table)), abs=5e-3)
    # Half of the candidates are selected, and nothing goes to the others.
    assert ((attention > 0).sum(axis=1) <= -(-attention.shape[1] // 2)).all()
    assert table.uns["mmap"]["attention_of"] == ENCODER
    # It is in the files of a fit and of predict, which are of the same spots.
    mm.predict(attending, tiny.store, tmp_path / "p", slides=["B1"], progress=False)
    for file in (tmp_path / "p" / "B1.h5ad", attending.path / "predictions" / "B1.h5ad"):
        assert np.array_equal(anndata.read_h5ad(file).obsm["attention"], attention)


def test_a_head_without_prototypes_tells_of_none(tiny: Tiny) -> None:
    table = mm.load_head(tiny.run).predict(tiny.store, "B1", progress=False)
    assert "attention" not in table.obsm
    assert "attention_of" not in table.uns["mmap"]


@dataclass
class Fixed:
    """A head that predicts one value, and attends to `width` prototypes alike."""

    value: float
    width: int | None
    history: tuple[dict[str, float], ...] = ()

    def predict(self, slide: HeadSlide) -> np.ndarray:
        return np.full((len(slide), 2), self.value, np.float32)

    def predict_and_attend(self, slide: HeadSlide) -> tuple[np.ndarray, Attention | None]:
        if self.width is None:
            return self.predict(slide), None
        return self.predict(slide), Attention(np.full((len(slide), self.width), 1 / self.width, np.float16))


@pytest.mark.parametrize(
    ("widths", "weights", "encoder"),
    [
        ((4, 5), (0.3, 0.7), 1),
        ((4, 5), (0.7, 0.3), 0),
        ((4, None), (0.3, 0.7), 0),  # the heavier one attends to none
        ((None, None), (0.5, 0.5), None),
    ],
)
def test_of_several_encoders_the_heaviest_tells(
    widths: tuple[int | None, int | None], weights: tuple[float, float], encoder: int | None
) -> None:
    slide = HeadSlide(
        name="S", patient=None, ids=("a", "b"), xy=np.zeros((2, 2)), embedding=np.zeros((2, 1, 1), np.float32),
        valid=np.ones(2, np.bool_),
    )  # fmt: skip
    joined = HeadSlide(**{**vars(slide), "others": (slide,)})
    members = tuple(Fixed(float(number), width) for number, width in enumerate(widths))
    head = JoinedHead(("a", "b"), members, np.array(weights))
    predicted, attention = predict_and_attend(head, joined)
    assert np.array_equal(predicted, head.predict(joined))
    if encoder is None:
        assert attention is None
    else:
        assert attention is not None
        assert (attention.encoder, attention.weights.shape[1]) == (encoder, widths[encoder])
