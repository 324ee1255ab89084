"""Small stores that tests of storing share, and what is in one."""

import json
from pathlib import Path

import numpy as np
from google_crc32c import value as crc32c

from mmap_st.data.spots import Spots
from mmap_st.errors import DamagedSlideError
from mmap_st.extract.store.integrity import DIGESTS
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.stored_slide import SlideInfo
from mmap_st.extract.store.writing.writer import MagnificationWriter, write_slide
from mmap_st.prototypes import CandidateSettings
from mmap_st.prototypes.stored import build_all, stored_candidates

N, WIDTH, CHUNK = 12, 6, 5
MPPS = (0.5, 1.0)
RECIPE = {"encoder": {"name": "enc"}, "weights_sha256": "w", "precision": "fp32"}
SETTINGS = CandidateSettings(clusters=3)


def values_of(slide: str, mpp: float) -> np.ndarray:
    rng = np.random.default_rng([ord(slide), int(10 * mpp)])
    return rng.normal(size=(N, WIDTH)).astype(np.float16).astype(np.float32)


def made(path: Path, tokens: int = 0) -> Path:
    """A store of two slides with two magnifications and prototypes; one window could not be read."""
    store = FeatureStore.create(path)
    for number, name in enumerate(("A", "B")):
        xy = np.arange(2.0 * N).reshape(N, 2) + number
        spots = Spots(tuple(f"{name}{i}" for i in range(N)), xy)
        write_slide(store, SlideInfo(name, f"P{number}", "a.tif", (100, 80), 0.25, "cohort"), spots)
        for mpp in MPPS:
            recipe = {**RECIPE, "mpp": mpp, **({"tokens": tokens} if tokens else {})}
            writer = MagnificationWriter(
                store, name, "enc", mpp, recipe, (N, WIDTH), chunk=CHUNK, tokens=(tokens, 2 if tokens else 0)
            )
            values = np.concatenate([values_of(name, mpp), np.ones((N, tokens**2 * 2), np.float32)], axis=1)
            for index in writer.pending():
                rows = writer.rows(index)
                part, ones = slice(rows.start, rows.stop), np.ones(len(rows), np.float32)
                writer.write_chunk(index, values[part], np.array(rows) != 7, ones, ones)
            writer.finish({"device": "cpu"})
    build_all(store, "enc", MPPS, SETTINGS)
    return path


def aged(path: Path) -> Path:
    """As an earlier version wrote it: no check sums, no digests, chunks without content left out."""
    for file in list(path.rglob("zarr.json")):
        node = json.loads(file.read_text())
        if node["node_type"] == "group":
            for key in (DIGESTS, "sha256", "invalid"):
                node["attributes"].pop(key, None)
        else:
            assert node["codecs"].pop()["name"] == "crc32c"
            for chunk in (file.parent / "c").rglob("*"):
                if chunk.is_file():
                    content = chunk.read_bytes()
                    assert crc32c(content[:-4]) == int.from_bytes(content[-4:], "little")
                    chunk.write_bytes(content[:-4])
        file.write_text(json.dumps(node))
    return path


def read(path: Path, *, whole: bool = False) -> dict[str, object]:
    """The numbers of a store by slide; of a damaged slide, what is said of it. `whole`: nothing is left out."""
    store, found = FeatureStore.open(path), {}
    for name in store.slides:
        try:
            slide = store.slide(name)
            parts: list[object] = [
                slide.encoders(),
                slide.patient,
                slide.source_mpp,
                slide.spot_ids(),
                slide.spot_xy().tolist(),
            ]
            for mpp, one in slide.complete("enc").items():
                parts += [mpp, one.embedding().tobytes(), one.valid().tolist(), one.skipped().tolist()]
            if whole:
                slide.verify("enc")
            candidates, _ = stored_candidates(store, slide, "enc", MPPS, SETTINGS)
            parts += [candidates.centre.tobytes(), candidates.label.tolist()]
            found[name] = parts
        except DamagedSlideError as error:
            found[name] = f"{error}"
    return found


def unfinished(path: Path, slide: str = "B", mpp: float = 2.0) -> None:
    """Begin one more magnification of a slide, and write its first chunk."""
    store = FeatureStore.open(path, writable=True)
    writer = MagnificationWriter(store, slide, "enc", mpp, {**RECIPE, "mpp": mpp}, (N, WIDTH), chunk=CHUNK)
    ones = np.ones(CHUNK, np.float32)
    writer.write_chunk(0, np.ones((CHUNK, WIDTH), np.float32), ones > 0, ones, ones)
