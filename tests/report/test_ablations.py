from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmap_st.report.ablations import draw_ablations


def row(key: str, mean: float, interval: tuple[float, float] | None = None) -> dict[str, Any]:
    apart = {m: {"mean": mean, "interval": interval} for m in ("pcc_slide", "mse")}
    whole = key == "whole"
    selected = int(key.removeprefix("selected-")) if key.startswith("selected-") else None
    return {"key": key, "variant": key, "selected": selected, "pcc_slide": 0.3 + mean, "mse": 1 - mean, "mae": 0.7,
            "difference": None if whole else apart}  # fmt: skip


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
