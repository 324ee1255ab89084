"""What several tests share: small cohorts, made in seconds."""

import gc
import gzip
import io
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings
from PIL import Image
from threadpoolctl import threadpool_limits

# Where tests run side by side each has one core: set before libraries are loaded, and for the commands they start.
# NumPy is loaded by then, since zarr has a plug-in for pytest.
if "PYTEST_XDIST_WORKER" in os.environ:
    threadpool_limits(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
    os.environ.setdefault("POLARS_MAX_THREADS", "1")
    # Ray's processes would wait for all others, as they do where other work is to go first.
    os.environ.setdefault("RAY_worker_niceness", "0")

import mmap_st as mm
from mmap_st import cli
from mmap_st.data.cohort import Cohort
from mmap_st.data.readers import open_cohort
from mmap_st.data.targets import Targets
from mmap_st.extract.encoders import encoder_spec
from mmap_st.extract.engine.extraction import EncoderRequest, extract_cohort
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.inputs import HeadSlide
from mmap_st.prototypes.candidates import (
    CandidateSettings,
    build_candidates,
    select_prototypes,
    selected_count,
)
from mmap_st.workflows import HeadRun
from mmap_st.workflows.simulation import SimulationSettings, simulate_cohort

# Machines differ in speed, so no deadlines; in CI a run must not depend on luck.
settings.register_profile("project", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("project")

#: Files whose tests run for minutes. Each file stays on one core, so that these must not come last.
_LONGEST_FIRST = (
    "test_faults.py",
    "test_readme.py",
    "test_cross_validation.py",
    "test_cli.py",
    "test_comparison.py",
    "test_extraction.py",
    "test_engine.py",
    "test_fit.py",
    "test_whole_way.py",
    "test_notebook.py",
    "test_fuzz.py",
    "test_every_head.py",
    "test_wheel.py",
    "test_moved.py",
    "test_api.py",
)
#: Files that run for long the lines that quicker files run too, and are not traced: coverage takes a quarter more.
_UNTRACED = (
    "test_api.py",
    "test_cli.py",
    "test_comparison.py",
    "test_cross_validation.py",
    "test_data_of_before.py",
    "test_docstrings.py",
    "test_embeddings.py",
    "test_engine.py",
    "test_every_head.py",
    "test_every_reader.py",
    "test_extraction.py",
    "test_extraction_on_grids.py",
    "test_faults.py",
    "test_fit.py",
    "test_formats.py",
    "test_fuzz.py",
    "test_help.py",
    "test_hostile_names.py",
    "test_integrity.py",
    "test_joined_rows.py",
    "test_joined_runs.py",
    "test_large_chunks.py",
    "test_layers.py",
    "test_limits.py",
    "test_many_slides.py",
    "test_moved.py",
    "test_mtx.py",
    "test_names.py",
    "test_notebook.py",
    "test_nothing_to_do.py",
    "test_one_broken_slide.py",
    "test_outputs.py",
    "test_precision.py",
    "test_protocols.py",
    "test_public_signatures.py",
    "test_readers_agree.py",
    "test_readme.py",
    "test_removed_meanwhile.py",
    "test_repair.py",
    "test_resizing.py",
    "test_scale.py",
    "test_simulated.py",
    "test_sizes.py",
    "test_slides_to_predictions.py",
    "test_spatial_metadata.py",
    "test_specs.py",
    "test_statistics.py",
    "test_tags.py",
    "test_tissue.py",
    "test_tokens.py",
    "test_use.py",
    "test_user_heads.py",
    "test_wheel.py",
    "test_whole_way.py",
    "test_xenium_runs.py",
)
#: What `make quick` leaves out: real extractions, cross-validations, processes, browsers and their pages, and all
#: heads and encoders at length.
_SLOW = (
    "browser/",
    "commands/",
    "data/test_download.py",
    "data/test_fuzz.py",
    "cloud/",
    "extract/encoders/test_precision.py",
    "extract/encoders/test_specs.py",
    "extract/encoders/test_use.py",
    "extract/encoders/test_weights.py",
    "extract/engine/",
    "extract/imports/test_imports.py",
    "extract/slides/test_formats.py",
    "extract/store/test_integrity.py",
    "extract/windows/test_reading.py",
    "head/evaluation/",
    "head/joined/",
    "head/mmap/",
    "head/networks/test_tokens.py",
    "head/test_every_head.py",
    "head/test_simulated.py",
    "head/runs/",
    "head/sharing/",
    "head/test_scale.py",
    "head/test_user_heads.py",
    "report/test_page.py",
    "report/test_charts.py",
    "report/viewer/test_server.py",
    "test_api.py",
    "test_data_of_before.py",
    "test_docstrings.py",
    "test_moved.py",
    "test_notebook.py",
    "test_readme.py",
    "test_wheel.py",
    "workflows/",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    # What is imported by now stays: garbage is looked for among the rest, which takes a tenth less of the time.
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in _LONGEST_FIRST)
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(_SLOW):
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    # The marker of pytest-cov, no_cover, traces what a file makes for its tests.
    plugin = item.config.pluginmanager.getplugin("_cov")
    control = None if plugin is None else plugin.cov_controller
    if control is None or item.path.name not in _UNTRACED:
        return (yield)
    control.pause()
    try:
        return (yield)
    finally:
        control.resume()


SHARED = Path(__file__).resolve().parents[2] / "shared"

#: A timm model made for tests: 160 px, a few thousand weights.
TINY = "timm:test_efficientnet"

WriteSection = Callable[..., Path]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the repository."""
    if not (SHARED / "data" / "her2st").is_dir():
        pytest.skip("the real data is not beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def section_writer() -> WriteSection:
    """Write one made section in the layout of her2st; every part of it can be replaced."""

    def write(
        name: str = "A1",
        *,
        root: Path,
        counts: str | None = None,
        spots: str | None = None,
        image: bool | bytes = True,
        side: int = 4,
        seed: int = 0,
        mpp: float = 1.0,
        plain: bool = False,
    ) -> Path:
        rng = np.random.default_rng(seed)
        array = [(x, y) for y in range(1, side + 1) for x in range(1, side + 1)]
        pitch_px = 200.0 / mpp
        if counts is None:
            genes = [f"G{i}" for i in range(6)]
            rows = [f"{x}x{y}\t" + "\t".join(map(str, rng.poisson(5, 6))) for x, y in array]
            counts = "\n".join(["\t" + "\t".join(genes), *rows]) + "\n"
        if spots is None:
            rows = [f"{x}\t{y}\t{x}\t{y}\t{x * pitch_px}\t{y * pitch_px}\t1" for x, y in array]
            spots = "\n".join(["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected", *rows]) + "\n"
        for folder in ("ST-cnts", "ST-spotfiles"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        if plain:
            (root / "ST-cnts" / f"{name}.tsv").write_text(counts)
        else:
            (root / "ST-cnts" / f"{name}.tsv.gz").write_bytes(gzip.compress(counts.encode()))
        (root / "ST-spotfiles" / f"{name}_selection.tsv").write_text(spots)
        folder = root / "ST-imgs" / name[:-1] / name
        if image is not False:
            folder.mkdir(parents=True, exist_ok=True)
        if image is True:
            size = round((side + 1) * pitch_px)
            noise = rng.integers(0, 255, (size // 8 + 1, size // 8 + 1, 3), np.uint8)
            picture = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
            picture.save(folder / f"{name}.jpg", quality=90)
        elif isinstance(image, bytes):
            (folder / f"{name}.jpg").write_bytes(image)
        return root

    return write


@pytest.fixture
def write_section(section_writer: WriteSection, tmp_path: Path) -> WriteSection:
    """`section_writer`, into the test's own folder."""

    def write(name: str = "A1", *, root: Path = tmp_path / "her2st", **parts: Any) -> Path:
        return section_writer(name, root=root, **parts)

    return write


@pytest.fixture
def mmap(monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in this process, seconds faster than in one of its own: what it prints, and its status."""

    def run(*words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        root, status = logging.getLogger(), 0
        handlers, output, errors = root.handlers[:], io.StringIO(), io.StringIO()
        root.handlers.clear()
        with monkeypatch.context() as patch, warnings.catch_warnings(), redirect_stdout(output):
            patch.setattr(sys, "argv", ["mmap", *map(str, words)])
            for name, value in environment.items():
                patch.setenv(name, value)
            if cwd is not None:
                patch.chdir(cwd)
            try:
                with redirect_stderr(errors):
                    cli.main()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                root.handlers[:] = handlers
        return subprocess.CompletedProcess(words, status, output.getvalue(), errors.getvalue())

    return run


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills, for whichever of the run's workers needs it first; all of them only read it."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = factory.mktemp(name)
        make(folder)
        return folder
    folder = factory.getbasetemp().parent / name
    made = folder.with_suffix(".made")
    with FileLock(folder.with_suffix(".lock")):
        if not made.exists():
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five simulated sections, in the layout of her2st."""

    def make(root: Path) -> None:
        simulate_cohort(root, SimulationSettings(patients=5, size_um=1600.0, genes_per_kind=8), seed=3)

    return made_once(tmp_path_factory, "simulated", make)


@pytest.fixture(scope="session")
def cohort(simulated: Path) -> Cohort:
    return open_cohort(f"her2st:{simulated}")


@pytest.fixture(scope="session")
def store(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """The simulated sections, embedded by a real encoder at two magnifications."""

    def make(folder: Path) -> None:
        request = EncoderRequest(encoder_spec("efficientnet-lite0"))
        assert not extract_cohort(cohort, folder / "features.zarr", request, (0.5, 1.0)).failed

    # Fits write prototypes into it: each worker has its own.
    made = made_once(tmp_path_factory, "store", make)
    path = shutil.copytree(made, tmp_path_factory.mktemp("store") / "own") / "features.zarr"
    return FeatureStore.open(path)


@pytest.fixture
def head_slides() -> Callable[..., list[HeadSlide]]:
    """Make slides whose targets are a noisy linear function of their embeddings, within each slide."""

    def make(
        slides: int = 4,
        spots: int = 60,
        magnifications: int = 2,
        width: int = 12,
        genes: int = 5,
        seed: int = 0,
        noise: float = 0.3,
    ) -> list[HeadSlide]:
        rng = np.random.default_rng(seed)
        weight = rng.normal(size=(magnifications * width, genes)) / np.sqrt(magnifications * width)
        made = []
        for index in range(slides):
            embedding = rng.normal(size=(spots, magnifications, width)).astype(np.float32)
            target = embedding.reshape(spots, -1) @ weight + noise * rng.normal(size=(spots, genes)) + 2.0
            candidates = build_candidates(embedding, np.ones(spots, np.bool_), CandidateSettings())
            count = selected_count(len(candidates.size))
            made.append(
                HeadSlide(
                    name=f"S{index}",
                    patient=f"P{index}",
                    ids=tuple(f"{i}x0" for i in range(spots)),
                    xy=rng.uniform(0, 1000, (spots, 2)),
                    embedding=embedding,
                    valid=np.ones(spots, np.bool_),
                    target=Targets.of_dense(target.astype(np.float32)),
                    centre=candidates.centre,
                    selected=select_prototypes(embedding, candidates.centre, count),
                )
            )
        return made

    return make


@pytest.fixture
def lacking() -> Callable[..., HeadSlide]:
    """The slide without some genes, and without the targets of some spots."""

    def edit(slide: HeadSlide, genes: tuple[int, ...] = (), spots: tuple[int, ...] = ()) -> HeadSlide:
        dense = slide.targets.dense()
        dense[:, list(genes)] = np.nan
        dense[list(spots)] = np.nan
        return replace(slide, target=Targets.of_dense(dense))

    return edit


@dataclass(frozen=True)
class Tiny:
    """A simulated cohort of three small sections, embedded, and a head that was trained on two of them."""

    her2st: Path
    store: Path
    run: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """See `Tiny`; made by the public functions."""

    def make(folder: Path) -> None:
        her2st = folder / "her2st"
        simulate_cohort(her2st, SimulationSettings(patients=3, size_um=900.0, genes_per_kind=4), seed=3)
        cohort = mm.read_cohort(f"her2st:{her2st}")
        store = mm.embed(
            cohort, folder / "features.zarr", encoder="efficientnet-lite0", mpp=[0.5, 1.0], progress=False
        )
        mm.fit_head(
            cohort, store, encoder="efficientnet-lite0", head="ridge", settings={"alpha": 1e4}, genes="mean:10",
            test={"patient": "B"}, out=folder / "run", progress=False,
        )  # fmt: skip

    made = made_once(tmp_path_factory, "tiny", make)
    own = shutil.copytree(
        made, tmp_path_factory.mktemp("tiny") / "own", ignore=shutil.ignore_patterns("her2st")
    )
    return Tiny(made / "her2st", own / "features.zarr", own / "run")


@pytest.fixture(scope="session")
def attending(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> HeadRun:
    """A head that attends to prototypes, trained on two sections of `tiny`."""
    return mm.fit_head(
        f"her2st:{tiny.her2st}", tiny.store, encoder="efficientnet-lite0",
        settings={"blend": 0.0, "components": 8}, genes="mean:10", test={"patient": "B"},
        out=tmp_path_factory.mktemp("attending") / "run", progress=False,
    )  # fmt: skip
