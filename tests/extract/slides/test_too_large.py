"""Files that declare more than can be decoded are refused in a sentence, before anything is allocated."""

from __future__ import annotations

import resource
import struct
import subprocess
import time
import zlib
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from mmap_st.errors import ImageError, ImageTooLargeError
from mmap_st.extract.engine.planning.options import ExtractOptions
from mmap_st.extract.slides.formats import memory
from mmap_st.extract.slides.slide import open_slide

HUGE = 29_952


def declare(path: Path, tags: dict[int, tuple[int, int]]) -> None:
    """Overwrite values (type, value) of tags of the first page of a little-endian classic TIFF."""
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", data, 4)
    (number,) = struct.unpack_from("<H", data, start)
    for index in range(number):
        at = start + 2 + 12 * index
        (tag,) = struct.unpack_from("<H", data, at)
        if tag in tags:
            struct.pack_into("<HII", data, at + 2, tags[tag][0], 1, tags[tag][1])
    path.write_bytes(data)


def huge_tiles(path: Path, **how: Any) -> None:
    tifffile.imwrite(path, np.full((256, 256, 3), 200, np.uint8), tile=(256, 256), photometric="rgb", **how)
    sides = {256: HUGE, 257: HUGE, 322: HUGE, 323: HUGE}
    declare(path, {tag: (4, value) for tag, value in sides.items()})


def huge_strip(path: Path, **how: Any) -> None:
    tifffile.imwrite(path, np.full((64, 64, 3), 200, np.uint8), photometric="rgb", **how)
    declare(path, {256: (4, 40_000), 257: (4, 25_000), 278: (4, 25_000)})


def png(path: Path, width: int = 60_000, height: int = 60_000) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def jpeg(path: Path) -> None:
    Image.new("RGB", (64, 64), "pink").save(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc0") + 5
    struct.pack_into(">HH", data, at, 65_000, 65_000)
    path.write_bytes(data)


BOMBS: dict[str, Callable[[Path], None]] = {
    "tiles.tif": huge_tiles,
    "deflate_tiles.tif": lambda path: huge_tiles(path, compression="zlib"),
    "jpeg_tiles.tif": lambda path: huge_tiles(path, compression="jpeg"),
    "ome_tiles.ome.tif": lambda path: huge_tiles(path, ome=True, metadata={"axes": "YXS"}),
    "strip.tif": huge_strip,
    "deflate_strip.tif": lambda path: huge_strip(path, compression="zlib"),
    "a.png": png,
    "a.jpg": jpeg,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_declares_much_is_refused(name: str, tmp_path: Path) -> None:
    BOMBS[name](tmp_path / name)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(ImageError) as error:
        open_slide(tmp_path / name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert time.perf_counter() - began < 5
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_check_does_the_others(tmp_path: Path, mmap: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    for name, write in BOMBS.items():
        write(tmp_path / name)
    rng = np.random.default_rng(0)
    picture = np.full((400, 400, 3), 243, np.uint8)
    picture[80:330, 60:350] = np.clip(np.array([206, 130, 180]) + rng.normal(0, 9, (250, 290, 3)), 0, 255)
    Image.fromarray(picture).save(tmp_path / "good.png")
    lines = [f"{name},{name},2" for name in (*BOMBS, "good.png")]
    (tmp_path / "c.csv").write_text("\n".join(["slide,image,mpp", *lines]) + "\n")
    shown = mmap("cohort", "check", tmp_path / "c.csv")
    assert shown.returncode == 1
    assert "please report" not in shown.stdout
    assert "Traceback" not in shown.stderr
    states = [line.split("│") for line in shown.stdout.splitlines() if "image alone" in line]
    assert [cells[1].strip() for cells in states if cells[-2].strip() == "ok"] == ["good.png"]
    assert len(states) == len(BOMBS) + 1


@pytest.mark.parametrize(("free", "refused"), [(1 << 40, False), (100_000_000, True)])
@pytest.mark.parametrize("kind", ["plain", "tiles"])
def test_what_does_not_fit_into_memory_is_refused(
    kind: str, free: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: free)
    monkeypatch.setattr(memory, "_SMALL_PX", 1000)
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(1_000_000))
    if refused:
        with pytest.raises(
            ImageTooLargeError, match=r"declares tiles of 9000 x 9000 px, which takes 0.486 GB"
        ):
            memory.refuse_too_large(path, (9000, 9000), 6, "tiles")
    else:
        memory.refuse_too_large(path, (9000, 9000), 6, "tiles")
    picture = np.random.default_rng(0).integers(0, 255, (6000, 6000), np.uint8)
    how = {"tile": (6000, 6000)} if kind == "tiles" else {"rowsperstrip": 64}
    if kind == "tiles":
        how["tile"] = (6000, 6000)
    tifffile.imwrite(tmp_path / "a.tif", picture, photometric="minisblack", metadata=None, **how)
    if refused:
        with pytest.raises(ImageTooLargeError, match="GB are free"):
            open_slide(tmp_path / "a.tif")
    else:
        with closing(open_slide(tmp_path / "a.tif")) as slide:
            assert slide.size == (6000, 6000)


@pytest.mark.parametrize(("most", "refused"), [("max", False), (str(5 << 30), True)])
def test_the_limit_of_a_container_holds_for_images_and_caches(
    most: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does for tables: a process in one is killed where it takes more."""
    (tmp_path / "meminfo").write_text(f"MemAvailable: {64 << 20} kB\n")
    (tmp_path / "memory.max").write_text(most)
    (tmp_path / "memory.current").write_text(str(3 << 30))
    monkeypatch.setattr("mmap_st.memory._MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("mmap_st.memory._CGROUP", tmp_path)
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(1_000_000))
    with pytest.raises(ImageTooLargeError, match=r"2\.15 GB are free") if refused else nullcontext():
        memory.refuse_too_large(path, (30_000, 30_000), 4)
    cache = ExtractOptions().cache_bytes(1 << 30)
    assert cache <= (2 << 30) // 8 if refused else cache > (2 << 30) // 8
