"""The public functions, as a notebook uses them."""

import json
import pkgutil
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import polars as pl
import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure

import mmap_st as mm
from mmap_st.errors import (
    CohortError,
    HeadError,
    MmapWarning,
    RequestError,
    SlideError,
    SlidesLeftOutWarning,
    SplitError,
    StoreError,
)
from mmap_st.workflows import NothingEmbeddedError
from tests.conftest import TINY, Tiny

ROOT = Path(__file__).resolve().parents[1]
ENCODER = "efficientnet-lite0"
PUBLIC = {
    "FeatureStore", "build_encoder", "compare", "embed", "encoders", "evaluate", "export", "fit_head",
    "heads", "list_encoders", "load_head", "merge_stores", "pack_store", "pl", "predict", "read_cohort",
    "settings_of", "tidy_store", "view", "write_report",
}  # fmt: skip


# What `import mmap_st` gives.


def test_it_gives_what_the_design_says() -> None:
    assert set(mm.__all__) == PUBLIC
    assert set(dir(mm)) == PUBLIC
    assert mm.__version__
    with pytest.raises(AttributeError):
        _ = mm.extract_everything


def test_the_import_is_fast_and_light() -> None:
    code = (
        "import sys, time; began = time.perf_counter(); import mmap_st; took = time.perf_counter() - began\n"
        "heavy = {'torch', 'numpy', 'polars', 'zarr', 'rich', 'matplotlib', 'anndata'} & set(sys.modules)\n"
        "print(took, *heavy)"
    )
    shown = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(3)
    ]
    assert all(len(words) == 1 for words in shown), shown
    assert min(float(words[0]) for words in shown) < 0.2


def test_public_names_mean_the_same_after_every_subpackage_is_imported() -> None:
    """In a process of its own: `mmap_st.x` is the subpackage once it is imported, if both had one name."""
    code = (
        "import importlib, pkgutil, types, mmap_st as mm\n"
        "for m in pkgutil.walk_packages(mm.__path__, 'mmap_st.'):\n"
        "    if not m.name.startswith(('mmap_st.tests', 'mmap_st.benchmarks', 'mmap_st.docs', 'mmap_st.setup'))"
        " and not m.name.endswith('__main__'):\n"
        "        importlib.import_module(m.name)\n"
        "modules = {name for name in mm.__all__ if isinstance(getattr(mm, name), types.ModuleType)}\n"
        "assert modules == {'pl', 'heads', 'encoders'}, modules\n"
        "assert all(callable(getattr(mm, name)) for name in set(mm.__all__) - modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    subpackages = {m.name for m in pkgutil.iter_modules([str(ROOT)]) if m.ispkg}
    assert not subpackages & PUBLIC


# Cohorts and stores.


def test_a_cohort_is_given_in_any_form(tiny: Tiny, tmp_path: Path) -> None:
    cohort = mm.read_cohort(f"her2st:{tiny.her2st}")
    assert mm.read_cohort(cohort) is cohort
    assert (
        repr(cohort) == f"Cohort her2st:{tiny.her2st}: 3 slides of 3 patients; 3 with an image, 3 with counts"
    )
    assert list(cohort) == ["A1", "B1", "C1"]
    assert "A1" in cohort
    rows = [{c: None if v is None else str(v) for c, v in vars(slide).items()} for slide in cohort.slides]
    table = pl.DataFrame(rows, infer_schema_length=None)
    table.write_csv(tmp_path / "cohort.csv")
    for source in (tmp_path / "cohort.csv", str(tmp_path / "cohort.csv"), table, pd.DataFrame(rows)):
        assert mm.read_cohort(source).slides == cohort.slides
    assert mm.read_cohort(table, values="lognorm")["A1"].values == "lognorm"
    with pytest.raises(CohortError, match="does not exist"):
        mm.read_cohort(tmp_path / "no.csv")
    with pytest.raises(RequestError, match="give counts or lognorm"):
        mm.read_cohort(table, values="log")
    with pytest.raises(RequestError, match="image is for"):
        mm.read_cohort(table, image=tmp_path)


def test_a_store_shows_what_is_in_it(tiny: Tiny) -> None:
    store = mm.FeatureStore(str(tiny.store))
    assert store.slides == tuple(store) == ("A1", "B1", "C1")
    assert len(store) == 3
    assert "A1" in store
    assert "Z1" not in store
    assert repr(store) == f"FeatureStore {tiny.store}: 3 slides\n  {ENCODER}: 0.5, 1 um/px"
    assert f"{ENCODER} at 0.5, 1 um/px" in repr(store["A1"])
    with pytest.raises(StoreError, match="did you mean A1"):
        store["A11"]
    with pytest.raises(StoreError, match="is not a feature store"):
        mm.FeatureStore(tiny.her2st)


def test_embeddings_of_a_slide_are_an_array_and_a_table(tiny: Tiny) -> None:
    slide = mm.FeatureStore(tiny.store)["A1"]
    fine, coarse = slide.embedding(ENCODER, mpp=0.5), slide.embedding(ENCODER, mpp=1)
    assert fine.shape == (len(slide), 1280)
    assert fine.dtype == np.float32
    assert not np.array_equal(fine, coarse)
    table = slide.to_anndata()
    np.testing.assert_array_equal(table.X, np.concatenate([fine, coarse], axis=1))
    assert list(table.obs_names) == list(slide.spot_ids())
    assert table.obs["valid"].all()
    assert table.var["mpp"].tolist() == [0.5] * 1280 + [1.0] * 1280
    np.testing.assert_array_equal(table.obsm["spatial"], slide.spot_xy())
    np.testing.assert_array_equal(slide.to_anndata(ENCODER, mpp=1.0).X, coarse)
    for arguments, sentence in (
        ({"encoder": "uni"}, "no complete embeddings of 'uni'; encoders: efficientnet-lite0"),
        ({"encoder": "efficientnet"}, "did you mean efficientnet-lite0"),
        ({"encoder": ENCODER}, "at 0.5, 1 um/px; give one mpp"),
        ({"encoder": ENCODER, "mpp": 2.0}, "at 2 um/px; there are 0.5, 1"),
    ):
        with pytest.raises(StoreError, match=sentence):
            slide.embedding(**arguments)
    with pytest.raises(StoreError, match=r"there are 0\.5, 1"):
        slide.to_anndata(mpp=[])


def test_rows_of_windows_that_cannot_be_read_are_nan(tiny: Tiny, tmp_path: Path) -> None:
    made = mm.embed(f"her2st:{tiny.her2st}", tmp_path / "f.zarr", encoder=TINY, random_weights=True, mpp=2,
                    tissue_min=0.9, progress=False)  # fmt: skip
    slide = made["A1"]
    valid = slide.to_anndata().obs["valid"].to_numpy()
    assert 0 < valid.sum() < len(slide)
    assert np.isnan(slide.embedding(TINY)[~valid]).all()
    assert np.isfinite(slide.embedding(TINY)[valid]).all()


# Embedding.


def test_scales_are_given_as_one_likes(tiny: Tiny, tmp_path: Path) -> None:
    source = f"her2st:{tiny.her2st}"
    found = []
    for number, scales in enumerate(
        ({"magnifications": [5, "2.5x"]}, {"magnifications": "5,2.5"}, {"mpp": [2.0, 4.0]}, {"mpp": "4,2"})
    ):
        made = mm.embed(
            source, tmp_path / f"{number}.zarr", encoder=TINY, random_weights=True, progress=False, **scales
        )
        found.append(tuple(made["A1"].complete(TINY)))
    assert found == [(2.0, 4.0)] * 4
    for scales, sentence in (
        ({}, "Give --magnifications"),
        ({"mpp": [1], "magnifications": [10]}, "not both"),
        ({"mpp": [-1]}, "between 0.01 and 100"),
    ):
        with pytest.raises(RequestError, match=sentence):
            mm.embed(source, tmp_path / "no.zarr", encoder=TINY, random_weights=True, **scales)
    assert not (tmp_path / "no.zarr").exists()


def test_slides_that_fail_are_not_silent(tiny: Tiny, tmp_path: Path) -> None:
    cohort = mm.read_cohort(f"her2st:{tiny.her2st}")
    rows = [{"slide": s.slide, "image": str(s.image), "spots": str(s.spots), "counts": str(s.counts),
             "reader": "her2st"} for s in cohort.slides]  # fmt: skip
    rows[1]["image"] = str(tmp_path / "gone.jpg")
    rows.append({"slide": "D1", "image": None, "spots": None, "counts": None, "reader": None})
    request = {"encoder": TINY, "random_weights": True, "mpp": 2, "progress": False}
    for _ in range(2):  # each time: a cell that is run again must not hide it
        with pytest.warns(SlidesLeftOutWarning) as told:
            store = mm.embed(pl.DataFrame(rows), tmp_path / "f.zarr", **request)
        texts = [str(warning.message) for warning in told]
        assert told[0].filename == __file__
        assert any(
            "1 slide failed" in text and "B1" in text and "gone.jpg does not exist" in text for text in texts
        )
        assert any("1 slide skipped" in text and "D1" in text for text in texts)
    assert store.report.failed.keys() == {"B1"}
    assert store.report.unchanged == ["A1", "C1"]
    assert "1 slide failed" in repr(store)
    with pytest.raises(
        NothingEmbeddedError, match=r"no slide could be done; slide B1: .*gone\.jpg"
    ) as refused:
        mm.embed(pl.DataFrame(rows[1:2]), tmp_path / "g.zarr", **request)
    assert refused.value.failed == refused.value.report.failed
    assert isinstance(refused.value, SlideError)


def test_progress_is_shown_only_where_it_is_wanted(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = {"encoder": TINY, "random_weights": True, "mpp": 0.5}
    mm.embed(f"her2st:{tiny.her2st}", tmp_path / "f.zarr", progress=False, **request)
    assert capsys.readouterr() == ("", "")
    mm.embed(f"her2st:{tiny.her2st}", tmp_path / "g.zarr", **request)
    out, errors = capsys.readouterr()
    assert out == ""
    assert "enlarged" in errors


# Heads.


def test_a_head_is_trained_loaded_and_applied(tiny: Tiny, tmp_path: Path) -> None:
    common = {
        "encoder": ENCODER,
        "head": "ridge",
        "settings": {"alpha": 1e4},
        "genes": "mean:10",
        "progress": False,
    }
    run = mm.fit_head(
        f"her2st:{tiny.her2st}",
        tiny.store,
        train={"slide": ["A1", "C1"]},
        test="slide=B1",
        out=tmp_path / "run",
        **common,
    )
    assert run.path == tmp_path / "run"
    assert run.settings["alpha"] == 1e4
    assert len(run.panel) == 10
    assert run.metrics.protocol.train == ("A1", "C1")
    written = json.loads((run.path / "metrics.json").read_text())
    assert run.metrics.test.pcc_slide == written["test"]["pcc_slide"]
    assert run.metrics.to_polars().filter(predictor="head")["pcc"].item() == run.metrics.test.slides["B1"].pcc
    assert "ridge on efficientnet-lite0 at 0.5, 1 um/px, 10 genes" in repr(run)
    # The one that the fixture made asked for the same in other words.
    loaded = mm.load_head(str(tiny.run))
    assert type(loaded) is type(run)
    assert loaded.report is None
    assert loaded.panel == run.panel
    assert loaded.metrics.test == run.metrics.test
    with pytest.raises(HeadError, match=r"head\.json"):
        mm.load_head(tmp_path)


def texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """A file keeps numbers as those of NumPy, and keys in another order."""
    return {k: texts(v) if isinstance(v, Mapping) else str(v) for k, v in values.items()}


def test_predictions_in_memory_are_those_of_the_files(tiny: Tiny, tmp_path: Path) -> None:
    store, run = mm.FeatureStore(tiny.store), mm.load_head(tiny.run)
    report = mm.predict(tiny.run, tiny.store, tmp_path / "p", slides="B1", progress=False)
    assert report.written == {"B1": tmp_path / "p" / "B1.h5ad"}
    file, memory = anndata.read_h5ad(report.written["B1"]), run.predict(store, "B1", progress=False)
    np.testing.assert_array_equal(file.X, memory.X)
    np.testing.assert_array_equal(file.layers["spread"], memory.layers["spread"])
    np.testing.assert_array_equal(file.obsm["spatial"], memory.obsm["spatial"])
    pd.testing.assert_frame_equal(file.obs, memory.obs)
    pd.testing.assert_frame_equal(file.var, memory.var)
    assert texts(file.uns["mmap"]) == texts(memory.uns["mmap"])
    assert "measured" not in memory.layers
    everything = run.predict(tiny.store, progress=False)
    assert list(everything) == ["A1", "B1", "C1"]
    assert list(run.predict(store, ["C1", "A1"], progress=False)) == ["C1", "A1"]
    with pytest.raises(RequestError, match="has no slide Z1"):
        run.predict(store, "Z1", progress=False)


def test_a_cohort_adds_what_was_measured_and_the_image(tiny: Tiny, tmp_path: Path) -> None:
    run = mm.load_head(tiny.run)
    cohort = mm.read_cohort(f"her2st:{tiny.her2st}")
    found = run.predict(tiny.store, "B1", cohort=cohort, progress=False)
    fitted = anndata.read_h5ad(tiny.run / "predictions" / "B1.h5ad")
    np.testing.assert_array_equal(found.layers["measured"], fitted.layers["measured"])
    assert found.uns["mmap"]["image"] == fitted.uns["mmap"]["image"]
    # Of a slide whose counts are of other genes.
    other = tmp_path / "other.tsv"
    ids = mm.FeatureStore(tiny.store)["B1"].spot_ids()
    other.write_text("\tNOGENE\n" + "".join(f"{spot}\t1\n" for spot in ids))
    row = {"slide": "B1", "counts": str(other), "spots": str(cohort["B1"].spots), "reader": "her2st"}
    with pytest.raises(SlideError, match="none of the head's genes"):
        run.predict(tiny.store, "B1", cohort=pl.DataFrame([row]), progress=False)


def test_slides_that_lack_what_a_head_needs_are_told_of(tiny: Tiny, tmp_path: Path) -> None:
    rows = [{"slide": "N1", "image": str(mm.read_cohort(f"her2st:{tiny.her2st}")["A1"].image), "mpp": 0.7}]
    shutil.copytree(tiny.store, tmp_path / "f.zarr")
    store = mm.embed(
        pl.DataFrame(rows), tmp_path / "f.zarr", encoder=ENCODER, mpp=1.0, spots="grid:200", progress=False
    )
    run = mm.load_head(tiny.run)
    with pytest.warns(SlidesLeftOutWarning, match=r"N1: .*not complete at 0\.5000 um/px"):
        assert list(run.predict(store, progress=False)) == ["A1", "B1", "C1"]
    with pytest.raises(RequestError, match=r"no slide of .* has what the head needs"):
        run.predict(store, "N1", progress=False)


@pytest.mark.parametrize(
    ("request_", "error", "sentence"),
    [
        ({"train": {"slides": ["A1"]}}, SplitError, "names no slides"),
        ({"train": {"slide": ["A1"]}, "test": {"slide": "A1"}}, SplitError, "a slide has one role"),
        ({"head": "rige"}, HeadError, "did you mean ridge"),
        ({"settings": {"alpa": 1.0}}, HeadError, "did you mean alpha"),
        ({"settings": {"alpha": "many"}}, HeadError, "is not a finite number"),
        ({"genes": ["NOGENE"]}, RequestError, "gene is on no training slide"),
        ({"magnifications": [20], "mpp": 0.5}, RequestError, "not both"),
        ({"encoder": "uni"}, RequestError, "no embeddings of 'uni'"),
    ],
)
def test_what_cannot_be_met_is_one_sentence(
    tiny: Tiny, tmp_path: Path, request_: dict[str, object], error: type[Exception], sentence: str
) -> None:
    common = {
        "encoder": ENCODER,
        "head": "ridge",
        "test": {"patient": "B"},
        "progress": False,
        "out": tmp_path / "no",
    }
    with pytest.raises(error, match=sentence):
        mm.fit_head(f"her2st:{tiny.her2st}", tiny.store, **{**common, **request_})
    assert not (tmp_path / "no").exists()


def test_a_panel_is_a_list_of_genes_and_patients_on_both_sides_are_told_of(
    tiny: Tiny, tmp_path: Path
) -> None:
    panel = list(mm.load_head(tiny.run).panel[:3])
    rows = [{**{c: None if v is None else str(v) for c, v in vars(s).items()}, "patient": "P"}
            for s in mm.read_cohort(f"her2st:{tiny.her2st}").slides]  # fmt: skip
    with pytest.warns(MmapWarning, match="patients P are in training and in test"):
        run = mm.fit_head(
            pl.DataFrame(rows, infer_schema_length=None), tiny.store, encoder=ENCODER, head="mean", genes=panel,
            test={"slide": "B1"}, out=tmp_path / "run", progress=False,
        )  # fmt: skip
    assert list(run.panel) == panel


def test_a_comparison_runs_in_processes_of_a_script_without_a_guard(tiny: Tiny, tmp_path: Path) -> None:
    """As a notebook's code, a script need not say ``if __name__ == "__main__"``; no worker runs it again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import mmap_st as mm\n"
        "open('runs.txt', 'a').write('once ')\n"
        f"result = mm.compare({f'her2st:{tiny.her2st}'!r}, {str(tiny.store)!r}, encoders=[{ENCODER!r}],\n"
        "    heads=['ridge', 'mean'], genes='mean:5', settings={'ridge': {'alpha': 1e4}}, out='cmp', jobs=2)\n"
        "print(result.table.height, result.rows[0].key)\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", f"{ENCODER}/ridge"]
    assert (tmp_path / "runs.txt").read_text() == "once "


def test_an_evaluation_gives_typed_scores(tiny: Tiny, tmp_path: Path) -> None:
    arguments = {
        "encoder": ENCODER,
        "head": "mean",
        "genes": "mean:5",
        "out": tmp_path / "e",
        "jobs": 1,
        "progress": False,
    }
    found = mm.evaluate(f"her2st:{tiny.her2st}", tiny.store, **arguments)
    assert found.metrics.test.pcc_slide == 0.0
    assert set(found.to_polars()["slide"]) == {"A1", "B1", "C1"}
    assert "Evaluation" in repr(found)
    assert mm.evaluate(f"her2st:{tiny.her2st}", tiny.store, **arguments).metrics == found.metrics  # resumed
    with pytest.raises(RequestError, match="another request"):
        mm.evaluate(f"her2st:{tiny.her2st}", tiny.store, **{**arguments, "genes": "mean:4"})


# Encoders.


def test_encoders_are_listed_and_built() -> None:
    table = mm.list_encoders()
    assert {"uni", "virchow2", ENCODER} <= set(table["name"])
    assert table.filter(name="uni")["gated"].item() is True
    assert mm.list_encoders("virchow", open_only=True).height < mm.list_encoders("virchow").height
    assert mm.list_encoders(ready=True)["ready"].all()
    encoder = mm.build_encoder(TINY, random_weights=True, device="cpu")
    windows = np.random.default_rng(0).integers(0, 255, (3, 160, 160, 3), np.uint8)
    embedded = encoder.embed(windows)
    assert embedded.shape == (3, encoder.width)
    assert embedded.dtype == np.float32
    assert repr(encoder).startswith(
        f"Encoder {TINY}: windows (n, 160, 160, 3) uint8 to (n, {encoder.width}) float32"
    )
    assert encoder.embed(windows[:0]).shape == (0, encoder.width)
    for wrong in (windows.astype(np.float32), windows[:, :100], windows[0]):
        with pytest.raises(RequestError, match=r"takes windows \(n, 160, 160, 3\) of uint8"):
            encoder.embed(wrong)


# Figures.


def test_figures_are_figures_and_change_no_settings(tiny: Tiny) -> None:
    before = dict(rcParams)
    run = mm.load_head(tiny.run)
    cohort = mm.read_cohort(f"her2st:{tiny.her2st}")
    table = run.predict(tiny.store, "B1", cohort=cohort, progress=False)
    gene = run.panel[0]
    with_image = mm.pl.genes(table, [gene])
    assert isinstance(with_image, Figure)
    titles = [axes.get_title() for axes in with_image.axes]
    assert {"H&E", gene} <= set(titles)
    assert with_image._repr_png_()[:4] == b"\x89PNG"
    with pytest.warns(MmapWarning, match="gene NOGENE is not among the 10 predicted"):
        partly = mm.pl.genes(table, [gene, "NOGENE"])
    assert "NOGENE" not in [axes.get_title() for axes in partly.axes]
    with pytest.raises(RequestError, match=f"did you mean {gene}"):
        mm.pl.genes(table, gene + "x")
    with pytest.raises(RequestError, match="is not a prediction"):
        mm.pl.genes(mm.FeatureStore(tiny.store)["A1"].to_anndata())
    assert mm.pl.genes(table, number=2, size=1.0).get_figwidth() < mm.pl.genes(table, number=2).get_figwidth()
    figure = Figure()
    axes = figure.subplots()
    assert mm.pl.prototypes(tiny.store, "A1", ax=axes) is figure
    assert "prototypes" in axes.get_title()
    assert mm.pl.prototypes(
        tiny.store, "A1", mpp=0.5, kind="random", clusters=8, image=cohort["A1"].image
    ).axes
    assert dict(rcParams) == before


def test_a_comparison_is_drawn_from_its_folder(tiny: Tiny, tmp_path: Path) -> None:
    result = mm.compare(
        f"her2st:{tiny.her2st}", tiny.store, encoders=ENCODER, heads="mean", genes="mean:5", out=tmp_path / "c",
        jobs=1, progress=False,
    )  # fmt: skip
    for given in (result, result.result, tmp_path / "c", str(tmp_path / "c")):
        assert isinstance(mm.pl.comparison(given), Figure)
    with pytest.raises(HeadError, match="cannot be read"):
        mm.pl.comparison(tmp_path)


def test_every_option_of_a_command_is_an_argument_of_its_function() -> None:
    from mmap_st.commands import evaluation, extraction, heads, reports
    from mmap_st.workflows import HeadRun
    from mmap_st.workflows.head_embedding import EmbeddingOptions

    names = {"set_": "settings", "compiled": "compile"}
    of_commands_alone = {"extract": {"preview", "status"}}
    of_predict = {"source": "store", "store": "embeddings"}
    for command, function in (
        (extraction.extract, mm.embed),
        (heads.fit_head, mm.fit_head),
        (heads.predict, mm.predict),
        (evaluation.evaluate, mm.evaluate),
        (evaluation.compare, mm.compare),
        (reports.report, mm.write_report),
        (reports.export, mm.export),
    ):
        renamed = names | (of_predict if command is heads.predict else {})
        options = {renamed.get(name, name) for name in command.__annotations__} - {"return"}
        missing = options - set(function.__annotations__) - of_commands_alone.get(command.__name__, set())
        assert not missing, (command.__name__, missing)
    # The run is the object, loaded by then, and nothing is embedded or written.
    of_loading = {"run", "source", "head_code", "allow_changed_code"}
    of_embedding = set(EmbeddingOptions.__annotations__)
    options = (
        set(heads.predict.__annotations__)
        - {"return", "out", "overwrite", "page"}
        - of_loading
        - of_embedding
    )
    missing = options - set(HeadRun.predict.__annotations__)
    assert not missing, ("HeadRun.predict", missing)


def test_warnings_can_be_made_errors(tiny: Tiny) -> None:
    run = mm.load_head(tiny.run)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MmapWarning)
        with pytest.raises(MmapWarning):
            mm.pl.genes(run.predict(tiny.store, "B1", progress=False), [run.panel[0], "NOGENE"])
