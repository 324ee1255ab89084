from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmap_st.head.evaluation import AblationRow
from mmap_st.head.scoring import Difference
from mmap_st.report.ablations import draw_ablations


def row(key: str, mean: float, interval: tuple[float, float] | None = None) -> AblationRow:
    apart = {m: Difference(mean, interval, None, 5) for m in ("pcc_slide", "mse")}
    whole = key == "whole"
    selected = int(key.removeprefix("selected-")) if key.startswith("selected-") else None
    difference = None if whole else apart
    return AblationRow(key, key, selected, 0.3 + mean, 0.3 + mean, 1 - mean, 0.7, 0.3, difference)


@pytest.mark.parametrize("interval", [None, (-0.2, 0.1)])
def test_a_picture_of_the_parts_and_one_of_the_number_of_prototypes(interval, tmp_path: Path) -> None:
    rows = [row("whole", 0.0), row("no-prototypes", -0.1, interval)]
    rows += [row(f"selected-{n}", -1 / n, interval) for n in (5, 10, 20, 40)]
    paths = draw_ablations(rows, tmp_path)
    assert [path.name for path in paths] == ["ablations.png", "selected.png"]
    for path in paths:
        picture = np.asarray(Image.open(path).convert("L"))
        assert picture.shape[1] > 1000
        assert (picture < 128).mean() > 0.002


def test_without_prototypes_there_is_no_picture_of_their_number(tmp_path: Path) -> None:
    paths = draw_ablations([row("whole", 0.0), row("no-attention", -0.1)], tmp_path)
    assert [path.name for path in paths] == ["ablations.png"]
