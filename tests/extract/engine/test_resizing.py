"""Where windows are resized: on the device that embeds them where that can, with the same store at the end."""

from dataclasses import replace
from pathlib import Path

import pytest
import zarr

from mmap_st.data.readers import open_cohort
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.windows.device_resizing import DeviceResizer

SMALL = EncoderRequest(replace(encoder_spec("timm:test_efficientnet"), input_px=32), random_weights=True)


@pytest.fixture
def resized(interpreted, monkeypatch) -> list[int]:
    """How many windows each step of a run had that a GPU resized, were one here."""
    counts: list[int] = []
    resize = DeviceResizer.resize

    def counting(self, arena, slot_of, needed, parts, out) -> None:
        counts.append(len(out))
        resize(self, arena, slot_of, needed, parts, out)

    monkeypatch.setattr(DeviceResizer, "of", lambda device: interpreted)
    monkeypatch.setattr(DeviceResizer, "suits", lambda self, plan, threads: True)
    monkeypatch.setattr(DeviceResizer, "resize", counting)
    return counts


def test_a_device_that_resizes_makes_the_same_store(write_section, tmp_path: Path, resized) -> None:
    cohort = open_cohort(f"her2st:{write_section('A1', side=2)}")  # too few spots to know their pitch by
    cohort = replace(cohort, slides=tuple(replace(row, mpp=1.0, mpp_from="cohort") for row in cohort.slides))
    arrays = []
    for where in ("auto", "cpu"):
        path = tmp_path / f"{where}.zarr"
        # Triton interprets one thread at a time.
        report = extract_cohort(cohort, path, SMALL, (0.5, 1.0), ExtractOptions(3, workers=1, resample=where))
        assert report.done == ["A1"], report.failed
        root = zarr.open_group(path, mode="r")
        arrays.append(
            {
                name: member[:].tobytes()
                for name, member in root.members(max_depth=None)
                if isinstance(member, zarr.Array) and not name.endswith("spots/id")
            }
        )
        assert sum(resized) == 8  # four spots, two magnifications, the first time
    assert arrays[0] == arrays[1]


def test_a_device_with_little_memory_leaves_it_to_the_cpu(
    write_section, tmp_path: Path, resized, monkeypatch
) -> None:
    monkeypatch.setattr(DeviceResizer, "suits", lambda self, plan, threads: False)
    cohort = open_cohort(f"her2st:{write_section('A1', side=3)}")
    assert extract_cohort(cohort, tmp_path / "f.zarr", SMALL, (0.5,)).done == ["A1"]
    assert resized == []


@pytest.mark.parametrize(
    ("free", "here", "threads", "suits"),
    [
        (1 << 30, 1 << 30, 2, True),
        (1 << 30, 1 << 34, 9, False),
        (1 << 34, 1 << 30, 6, False),
        (1 << 34, 1 << 34, 6, True),
        (0, 1 << 34, 1, False),
    ],
)
def test_memory_that_threads_take_is_known_before(
    interpreted, monkeypatch, free: int, here: int, threads: int, suits: bool
) -> None:
    class Plan:
        most_tiles, tile_bytes = 99, 1 << 18

    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, 1 << 40))
    monkeypatch.setattr("mmap_st.extract.windows.device_resizing.free_memory", lambda: here)
    assert interpreted.suits(Plan(), threads) == suits


def test_another_place_to_resize_is_refused(mmap, write_section, tmp_path: Path) -> None:
    cohort = f"her2st:{write_section('A1')}"
    store = str(tmp_path / "f.zarr")
    ended = mmap("extract", cohort, store, "--encoder", "uni", "--mpp", "1", "--resample", "moon")
    assert ended.returncode == 2
    assert "--resample moon is not known; give auto or cpu." in " ".join(ended.stderr.split())
    assert not (tmp_path / "f.zarr").exists()
