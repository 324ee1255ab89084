"""Stores of thousands of slides: what a command reads grows with the number of slides, and no faster."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmap_st.data.readers import open_cohort
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort

TINY = EncoderRequest(encoder_spec("timm:test_efficientnet"), random_weights=True)
NAMES = [f"{patient}{number}" for patient in "ABCD" for number in (1, 2, 3)]


@contextmanager
def counted_opens(monkeypatch: pytest.MonkeyPatch, below: Path) -> Iterator[Callable[[], int]]:
    """How often files of a store are looked at, by whatever function of the system."""
    seen = 0

    def counting(real: Callable[..., object]) -> Callable[..., object]:
        def call(path: object, *args: object, **kwargs: object) -> object:
            nonlocal seen
            if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(str(below)):
                seen += 1
            return real(path, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("lstat", "stat", "scandir", "open"):
            patch.setattr(os, name, counting(getattr(os, name)))
        yield lambda: seen


@pytest.fixture(scope="module")
def stores(section_writer, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Path]]:
    """Cohorts and stores of 3, 6 and 12 small slides."""
    folder = tmp_path_factory.mktemp("many")
    for number, name in enumerate(NAMES):
        section_writer(name, root=folder / "her2st", side=5, seed=number)
    extract_cohort(open_cohort(f"her2st:{folder / 'her2st'}"), folder / "12.zarr", TINY, (1.0,))
    made = {12: (folder / "her2st", folder / "12.zarr")}
    for count in (3, 6):
        shutil.copytree(folder / "12.zarr", folder / f"{count}.zarr")
        shutil.copytree(folder / "her2st", folder / f"her2st{count}")
        for name in NAMES[count:]:
            shutil.rmtree(folder / f"{count}.zarr" / name)
            (folder / f"her2st{count}" / "ST-cnts" / f"{name}.tsv.gz").unlink()
        made[count] = (folder / f"her2st{count}", folder / f"{count}.zarr")
    return made


@pytest.mark.parametrize("command", ["info", "fit-head"])
def test_a_slide_costs_the_same_however_many_there_are(
    command: str, stores, mmap, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    looks = {}
    for count, (cohort, store) in stores.items():
        words: list[object] = [command, store]
        if command == "fit-head":
            words = [command, f"her2st:{cohort}", store, "--encoder", TINY.spec.name, "--head", "mean"]
            words += ["--genes", "all", "--out", tmp_path / f"run{count}"]
        with counted_opens(monkeypatch, store) as seen:
            done = mmap(*words)
            looks[count] = seen()
        assert done.returncode == 0, done.stderr
    assert looks[3] > 0
    each = (looks[6] - looks[3]) / 3
    assert (looks[12] - looks[6]) / 6 == pytest.approx(each, rel=0.1)
