"""Whoever wrote a store chose its texts: none reaches a terminal as a command, by messages, logs or reprs."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmap_st.data.spots import Spots
from mmap_st.errors import MmapError, printable
from mmap_st.extract.store.reader import FeatureStore, note_unsealed, undamaged_slide
from mmap_st.extract.store.recipe import encode_name
from mmap_st.extract.store.stored_slide import SlideInfo
from mmap_st.extract.store.writing.writer import MagnificationWriter, write_slide
from tests.commands.hostile import TRAPS, unseen

SPOTS = Spots(tuple(f"{i}x1" for i in range(4)), np.arange(8.0).reshape(4, 2))


@pytest.fixture(scope="module", params=TRAPS[:7])
def trap(request: pytest.FixtureRequest) -> str:
    """A text that a terminal would obey, or that nobody would see."""
    return str(request.param)


@pytest.fixture(scope="module")
def made(trap: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in a folder of that name, with a slide and an encoder of that name."""
    made = FeatureStore.create(
        tmp_path_factory.mktemp("made") / encode_name(trap)[:20] / trap.replace("/", "")
    )
    write_slide(made, SlideInfo(trap, trap, "a.jpg", (100, 80), 0.5, "cohort"), SPOTS)
    recipe = {"encoder": {"name": trap}, "weights_sha256": "w", "precision": "fp32", "mpp": 0.5}
    writer = MagnificationWriter(made, trap, trap, 0.5, recipe, (4, 3), chunk=4)
    ones = np.ones(4, np.float32)
    writer.write_chunk(0, np.ones((4, 3), np.float32), ones > 0, ones)
    writer.finish({"device": "cpu"})
    return made.path


@pytest.fixture
def store(made: Path, tmp_path: Path) -> FeatureStore:
    """A test's own."""
    return FeatureStore.open(shutil.copytree(made, tmp_path / made.parent.name / made.name))


def set_attributes(store: FeatureStore, group: str, **attributes: object) -> None:
    file = store.path / group / "zarr.json"
    node = json.loads(file.read_text())
    node["attributes"] |= attributes
    file.write_text(json.dumps(node))


def test_reprs(store: FeatureStore, trap: str) -> None:
    slide = store.slide(trap)
    for shown in (repr(store), repr(slide), repr(slide.complete(trap))):
        assert unseen(shown) == []
    assert f"StoredSlide {printable(trap)}: 4 spots; {printable(trap)} at 0.5 um/px" in repr(slide)


@pytest.mark.parametrize("group", ["", "spots", "{encoder}", "{encoder}/0.5000"])
@pytest.mark.parametrize(
    "attribute", ["name", "complete", "recipe", "digests", "source_mpp", "chunks_done", "size_px"]
)
def test_messages_and_logs_of_attributes(
    group: str, attribute: str, store: FeatureStore, trap: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What stands there instead of what belongs there, or beside it, is quoted as text."""
    key = encode_name(trap)
    set_attributes(store, f"{key}/{group.format(encoder=key)}", **{attribute: trap})
    caplog.set_level(logging.INFO, "mmap_st")
    opened, said = FeatureStore.open(store.path), []
    note_unsealed(opened, opened.slides, trap)
    for name in (*opened.slides, trap, f"no {trap}"):
        undamaged_slide(opened, name)
        try:
            slide = opened.slide(name)
            said.append(repr(slide))
            slide.undamaged(trap)
            slide.spot_ids()
            slide.embedding(trap)
        except MmapError as error:
            said.append(str(error))
    said += [repr(opened), *(record.getMessage() for record in caplog.records)]
    assert unseen("".join(said)) == []


def test_a_note_of_a_store_without_check_sums(
    store: FeatureStore, trap: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = encode_name(trap)
    file = store.path / key / key / "0.5000" / "zarr.json"
    node = json.loads(file.read_text())
    del node["attributes"]["digests"]
    file.write_text(json.dumps(node))
    note_unsealed(FeatureStore.open(store.path), [trap], trap)
    (said,) = caplog.messages
    assert unseen(said) == []
    assert f"has no check sums of {printable(trap)} on 1 of 1 slide;" in said
