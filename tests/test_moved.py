"""What plug-ins import: the names of today, and those of before with a warning that names today's."""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import re
import subprocess
import sys
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from mmap_st import _moved, encoders, heads, plugins
from mmap_st.data.cohort import Cohort
from mmap_st.errors import EncoderError, HeadError
from mmap_st.extract.encoders import build_encoder, encoder_spec
from mmap_st.extract.encoders import plugins as encoder_plugins
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head import registry
from mmap_st.head.evaluation.comparison import compare
from mmap_st.head.evaluation.comparison_rows import CompareRequest, make_heads
from mmap_st.head.interface import HeadMethod, plan_validation
from mmap_st.head.registry import head_method
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.prediction_files import read_prediction
from mmap_st.head.runs.request import fit_request

ROOT = Path(__file__).resolve().parents[1]
BEFORE = Path(__file__).parent / "plugins_of_before"
NAMES: dict[str, list[str]] = json.loads((Path(__file__).parent / "names_of_before.json").read_text())
ENCODER = "efficientnet-lite0"
EPOCHS = ("epochs=2", "learning_rate=0.003")


def silent(text: str) -> None:
    pass


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text("utf-8"), flags=re.S)


@pytest.fixture
def in_docs(tmp_path: Path) -> Path:
    """The plug-in files of today's documentation."""
    (tmp_path / "near.py").write_text(examples("heads.md")[0])
    (tmp_path / "colour_grid.py").write_text(next(e for e in examples("encoders.md") if "CustomModel" in e))
    return tmp_path


def load(reference: str, *, old: bool) -> HeadMethod:
    """A head of a file; an old one warns, each import statement once, and one of today does not."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method = head_method(reference)
    told = [str(w.message) for w in caught if issubclass(w.category, DeprecationWarning)]
    assert bool(told) == old
    assert len(set(told)) == len(told)
    assert all(w.filename == reference.rpartition(":")[0] for w in caught)
    return method


@pytest.fixture(autouse=True)
def files_are_run_again() -> None:
    plugins._LOADED.clear()


# Old paths and names


@pytest.mark.parametrize("module", NAMES)
def test_old_modules_and_names_are_found(module: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = importlib.import_module(f"mmap_st.{module}")
        for name in NAMES[module]:
            assert getattr(found, name) is not None, name
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = found.no_such_name


def test_importing_an_old_module_hides_no_name_of_today() -> None:
    """Python sets a module as an attribute of its package: there the name must mean nothing else."""
    for module in NAMES:
        parent, _, name = module.rpartition(".")
        stub = ROOT.joinpath(*parent.split(".")) / "__init__.pyi"
        if stub.is_file() and parent != "commands":  # which gives modules
            assert f'"{name}"' not in stub.read_text("utf-8"), module


def test_what_is_not_of_before_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mmap_st.head.no_such_module")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mmap_st.head.base.no_such_module")
    with pytest.raises(ImportError, match="no_such_name"):
        exec("from mmap_st.head.base import no_such_name")


def test_the_package_uses_no_old_path() -> None:
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        if parts[0].startswith(".") or parts[0] in ("tests", "benchmarks", "build"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mmap_st."):
                old = node.module.partition(".")[2]
                here = ROOT.joinpath(*old.split("."))
                assert here.with_suffix(".py").is_file() or here.is_dir(), f"{path} imports {node.module}"
                assert not {a.name for a in node.names} & set(_moved._NAMES.get(old, ())), path


def test_each_import_statement_warns_once_and_names_the_new_import(tmp_path: Path) -> None:
    file = tmp_path / "imports.py"
    file.write_text(
        "from mmap_st.head.base import (\n    HeadMethod,\n    Validation,\n)\n"
        "from mmap_st.head.networks.network import NetworkSettings, PartNetwork, TrainingPart\n"
        "from mmap_st.head.slides import HeadSlide\n"
        "from mmap_st.extract.encoders import CustomModel, Pooling\n"
        "from mmap_st.head.ridge import RidgeSettings\n"
        "HEAD = 1\n"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(HeadError, match="of type int"):
            head_method(f"{file}:HEAD")
    assert [(w.lineno, str(w.message)) for w in caught] == [
        (1, "mmap_st.head.base is deprecated: import HeadMethod from mmap_st.heads."),
        (
            5,
            "PartNetwork of mmap_st.head.networks.network is deprecated: import BlockNetwork from"
            " mmap_st.heads.",
        ),
        (
            5,
            "TrainingPart of mmap_st.head.networks.network is deprecated: import TrainingBlock from"
            " mmap_st.heads.",
        ),
        (6, "mmap_st.head.slides is deprecated: import HeadSlide from mmap_st.heads."),
        (7, "mmap_st.extract.encoders is deprecated: import CustomModel from mmap_st.encoders."),
        (8, "mmap_st.head.ridge is deprecated: import RidgeSettings from mmap_st.head.linear.ridge."),
    ]
    with warnings.catch_warnings(record=True) as again:  # a file whose code has not changed is not run again
        warnings.simplefilter("always")
        with pytest.raises(HeadError, match="of type int"):
            head_method(f"{file}:HEAD")
    assert not again


@pytest.mark.parametrize("module", [heads, encoders], ids=["heads", "encoders"])
def test_what_plugins_import_is_there_and_light(module) -> None:
    assert module.__all__ == sorted(module.__all__) == dir(module)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = module.nothing
    code = f"import sys, {module.__name__}; print(sorted({{'torch', 'numpy', 'zarr', 'polars'}} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


# Old plug-ins


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("near.py:NEAR", "near.py:NEAR"),
        ("near_and_far.py:FAR", "near_and_far_today.py:FAR"),
        ("near_and_far.py:DOUBLED", "near_and_far_today.py:DOUBLED"),
    ],
)
def test_a_head_of_before_has_the_numbers_of_one_of_today(
    head_slides, in_docs: Path, old: str, new: str
) -> None:
    *train, test = head_slides()
    folder = in_docs if new.startswith("near.py") else BEFORE
    predicted = []
    for reference, is_old in ((f"{BEFORE}/{old}", True), (f"{folder}/{new}", False)):
        method = load(reference, old=is_old)
        settings = method.settings_type(epochs=3)
        fitted = method.fit(train, plan_validation(train, []), settings, 0, silent)
        loaded = method.load(fitted.tensors(), settings, registry.HEADS["mean"] and heads.Shape(2, 12, 5))
        np.testing.assert_allclose(loaded.predict(test), fitted.predict(test), atol=1e-6)
        predicted.append(fitted.predict(test))
    np.testing.assert_array_equal(*predicted)


def test_a_method_of_before_has_the_numbers_of_one_of_today(head_slides) -> None:
    *train, test = head_slides()
    method = load(f"{BEFORE}/average.py:AVERAGE", old=True)
    validation = plan_validation(train, [])
    found = method.fit(train, validation, method.settings_type(), 0, silent)
    mean = registry.HEADS["mean"]
    expected = mean.fit(train, validation, mean.settings_type(), 0, silent)
    np.testing.assert_array_equal(found.predict(test), expected.predict(test))
    for one, other in zip(found.held_out(), expected.held_out(), strict=True):
        np.testing.assert_array_equal(one.predicted, other.predicted)


def test_an_encoder_of_before_has_the_numbers_of_one_of_today(in_docs: Path) -> None:
    windows = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    embedded = []
    for file in (BEFORE / "colour_grid.py", in_docs / "colour_grid.py"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            spec = encoder_spec(f"{file}:make")
        assert [str(w.message) for w in caught] == (
            ["mmap_st.extract.encoders is deprecated: import CustomModel from mmap_st.encoders."]
            if file.parent == BEFORE
            else []
        )
        embedded.append(build_encoder(spec, device="cpu").embed(windows))
    np.testing.assert_array_equal(*embedded)


def test_the_commands_run_plugins_of_before(simulated: Path, store: FeatureStore, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mmap_st", *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    cohort = f"her2st:{simulated}"
    fit = (
        "fit-head",
        cohort,
        str(store.path),
        "--encoder",
        ENCODER,
        "--genes",
        "hvg:12",
        "--test",
        "slide=E1",
    )
    told = run(*fit, "--head", f"{BEFORE}/near.py:NEAR", "--set", "epochs=1", "--out", "run")
    assert told.count("import network_method from mmap_st.heads") == 1
    predict = ("predict", "run", str(store.path), "--out", "out", "--slides", "E1")
    assert run(*predict, "--head-code", f"{BEFORE}/near.py:NEAR").count("Deprecation") == 4
    extract = ("extract", cohort, "own.zarr", "--mpp", "1", "--encoder", f"{BEFORE}/colour_grid.py:make")
    assert run(*extract).count("import CustomModel from mmap_st.encoders") == 1
    assert FeatureStore.open(tmp_path / "own.zarr").slide("A1").complete("colour-grid").keys() == {1.0}


def test_installed_plugins_of_before_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BEFORE)
    points = {
        registry: EntryPoint("nearby", "near:NEAR", "mmap_st.heads"),
        encoder_plugins: EntryPoint("grid", "colour_grid:make", "mmap_st.encoders"),
    }
    for module, point in points.items():
        monkeypatch.setattr(module, "entry_points", lambda group, point=point: [point])
    registry.installed_heads.cache_clear()
    encoder_plugins.installed_encoders.cache_clear()
    try:
        with pytest.warns(DeprecationWarning, match="import network_method from mmap_st.heads"):
            assert head_method("nearby").name == "nearby"
        with pytest.warns(DeprecationWarning, match="import CustomModel from mmap_st.encoders"):
            assert encoder_spec("grid").name == "grid"
    finally:
        registry.installed_heads.cache_clear()
        encoder_plugins.installed_encoders.cache_clear()
        for name in ("near", "colour_grid"):
            sys.modules.pop(name, None)


def test_attributes_of_before_are_found(head_slides, lacking) -> None:
    slide = lacking(head_slides(slides=1)[0], genes=(1,))
    with pytest.warns(DeprecationWarning, match="HeadSlide.genes_lacking is deprecated: use missing_genes"):
        assert slide.genes_lacking == 1
    with pytest.warns(DeprecationWarning, match="EmbeddingScaler.of is deprecated: use transform"):
        found = slide.standard.of(slide.embedding)
    np.testing.assert_array_equal(found, slide.scaler.transform(slide.embedding))


# Registered in a notebook


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch):
    """What is registered is forgotten after the test."""
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setattr(encoder_plugins, "_REGISTERED", {})


def run_cell(code: str) -> dict[str, object]:
    """Execute code as a cell of a notebook is: in a `__main__` that has no file."""
    names: dict[str, object] = {"__name__": "__main__"}
    exec(code, names)
    return names


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)


@pytest.mark.usefixtures("registered", "notebook")
def test_a_head_of_a_notebook_is_fitted_by_its_name(
    cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    cell = examples("heads.md")[1]
    run_cell(cell)
    run_cell(cell)  # run again, it is replaced
    request = fit_request(ENCODER, "linear", pairs=EPOCHS, genes="hvg:12", test="slide=E1", baselines=False)
    fit_head(cohort, store, request, tmp_path / "run")
    assert np.isfinite(read_prediction(tmp_path / "run" / "predictions" / "E1.h5ad").X).all()
    folds = tmp_path / "folds.csv"
    folds.write_text("slide,fold\nA1,1\nB1,2\n")
    made = make_heads(["linear", "mean"], ["linear.epochs=1"], "default", genes="hvg:12")
    with pytest.raises(
        HeadError, match=r"linear is registered in this process only.*FILE.py:NAME, or give jobs=1"
    ):
        compare(cohort, store, CompareRequest((ENCODER,), made, folds=str(folds), jobs=2), tmp_path / "two")
    report = compare(
        cohort, store, CompareRequest((ENCODER,), made, folds=str(folds), jobs=1), tmp_path / "one"
    )
    assert not report.failed_folds


@pytest.mark.usefixtures("registered")
def test_a_head_registered_in_a_file_is_found_by_other_processes(in_docs: Path) -> None:
    code = (
        (in_docs / "near.py")
        .read_text()
        .replace("class NearNetwork", "@register('nearest')\nclass NearNetwork")
    )
    (in_docs / "registers.py").write_text(
        code.replace("    BlockNetwork,\n", "    BlockNetwork,\n    register,\n")
    )
    sys.path.insert(0, str(in_docs))
    try:
        importlib.import_module("registers")
    finally:
        sys.path.remove(str(in_docs))
        sys.modules.pop("registers", None)
    method = head_method("nearest")
    assert method.settings_type.__name__ == "NearSettings"  # of the annotation
    assert method.reference == f"{in_docs / 'registers.py'}:NearNetwork"
    again = pickle.loads(pickle.dumps(fit_request(ENCODER, "nearest", pairs=("width=16",))))
    assert (again.method.name, again.method.code, again.settings.width) == ("nearest", method.code, 16)


@pytest.mark.usefixtures("registered")
def test_methods_and_functions_can_be_registered(head_slides) -> None:
    train = head_slides(slides=3)

    @heads.register("wide", tokens=False)
    def wide(sizes: heads.Sizes, settings) -> heads.BlockNetwork:
        from mmap_st.head.published.histogene import HistogeneNetwork, HistogeneSettings

        return HistogeneNetwork(sizes, HistogeneSettings(width=32, epochs=settings.epochs))

    method = head_method("wide")
    settings = method.settings_type(epochs=1)
    assert method.fit(train, plan_validation(train, []), settings, 0, silent).predict(train[0]).shape == (
        60,
        5,
    )
    mean = registry.HEADS["mean"]
    own = heads.HeadMethod("own-mean", mean.settings_type, mean.fit, mean.load)
    assert heads.register(own) is own
    assert head_method("own-mean").code
    assert heads.register("other-mean")(own) is own
    assert head_method("other-mean").name == "other-mean"
    with pytest.raises(HeadError, match="did you mean own-mean"):
        head_method("own-meen")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("name", "made", "part"),
    [
        ("ridge", heads.BlockNetwork, "ridge is the name of a built-in head"),
        ("a b", heads.BlockNetwork, "letters, digits"),
        ("own", 3, "the head own is of type int"),
    ],
)
def test_what_cannot_be_registered_as_a_head(name: str, made: object, part: str) -> None:
    with pytest.raises(HeadError, match=part):
        heads.register(name)(made)
    assert not registry._REGISTERED


@pytest.mark.usefixtures("registered", "notebook")
def test_an_encoder_of_a_notebook_is_used_by_its_name() -> None:
    code = next(e for e in examples("encoders.md") if "CustomModel" in e)
    made = run_cell(code)
    assert encoders.register(made["make"]) is made["make"]
    spec = encoder_spec("colour-grid")
    assert spec.model.code
    windows = np.zeros((2, 64, 64, 3), np.uint8)
    assert build_encoder(spec, device="cpu").embed(windows).shape == (2, 48)
    with pytest.raises(EncoderError, match="not an EncoderSpec"):
        encoders.register(lambda: 3)
    from dataclasses import replace

    with pytest.raises(EncoderError, match="uni is the name of a built-in encoder"):
        encoders.register(replace(spec, name="uni"))
    encoders.register(replace(spec, name="grid"))
    assert encoder_spec("grid").name == "grid"
    with pytest.raises(EncoderError, match="did you mean colour-grid"):
        encoder_spec("color-grid")
