"""Every example of a docstring runs, and every public function has one."""

import doctest
import importlib
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmap_st as mm
from tests.conftest import Tiny

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {"tests", "benchmarks", "docs", "build", "setup.py", "__main__.py"}


def module_names() -> Iterator[str]:
    """All modules of the package that have an example."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] in SKIPPED or parts[0].startswith(".") or ">>>" not in path.read_text("utf-8"):
            continue
        name = ".".join(("mmap_st", *path.relative_to(ROOT).with_suffix("").parts))
        yield name.removesuffix(".__init__")


def public_objects() -> Iterator[tuple[str, object]]:
    """What `mmap_st.__all__` gives, the functions of `pl`, and the classes that functions return."""
    for name in mm.__all__:
        found = getattr(mm, name)
        if not inspect.ismodule(found):
            yield name, found
    for name in mm.pl.__all__:
        yield f"pl.{name}", getattr(mm.pl, name)
    from mmap_st.extract.store import StoredSlide
    from mmap_st.workflows import HeadRun

    yield from (("HeadRun", HeadRun), ("StoredSlide", StoredSlide), ("HeadRun.predict", HeadRun.predict))


@pytest.fixture(scope="module")
def namespace(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What examples may use without saying where it is from."""
    folder = tmp_path_factory.mktemp("examples")
    cohort, store = mm.read_cohort(f"her2st:{tiny.her2st}"), mm.FeatureStore(tiny.store)
    result = mm.compare(
        cohort, store, encoders=["efficientnet-lite0"], heads=["ridge", "mean"], genes="mean:10",
        settings={"ridge": {"alpha": 1e4}}, out=folder / "compared", jobs=1, progress=False,
    )  # fmt: skip
    return {
        "mm": mm,
        "her2st": tiny.her2st,
        "store_path": tiny.store,
        "run_path": tiny.run,
        "cohort": cohort,
        "store": store,
        "run": mm.load_head(tiny.run),
        "result": result,
        "folder": folder,
    }


@pytest.mark.filterwarnings("ignore::mmap_st.errors.MmapWarning")
@pytest.mark.parametrize("name", list(module_names()))
def test_the_examples_of_a_module_run(name: str, namespace: dict[str, object]) -> None:
    module = importlib.import_module(name)
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for example in finder.find(module, name, extraglobs=namespace):
        runner.run(example, out=report.append)
    assert not runner.summarize(verbose=False).failed, "".join(report)


def arguments_described(text: str) -> set[str]:
    """What stands at the margin of the section `Parameters`: names, some with commas between them."""
    _, _, section = text.partition("Parameters\n----------\n")
    lines = itertools.takewhile(lambda line: not line.startswith("---"), section.splitlines())
    at_margin = [line for line in lines if line and not line.startswith(" ")]
    return {name.strip(" *") for line in at_margin for name in line.split(",")}


def test_what_is_public_says_what_it_takes_and_shows_it() -> None:
    for name, found in public_objects():
        text = inspect.getdoc(found) or ""
        assert ">>>" in text, f"{name} has no example"
        if not inspect.isfunction(found):
            continue
        assert "Returns" in text, name
        described = arguments_described(text)
        for argument in inspect.signature(found).parameters:
            assert argument == "self" or argument in described, f"{name} does not describe {argument}"


def test_no_public_signature_has_a_dictionary_of_anything() -> None:
    for name, found in public_objects():
        members = [f for _, f in inspect.getmembers(found, inspect.isfunction)]
        for function in members if inspect.isclass(found) else [found]:
            hints = str(getattr(function, "__annotations__", {}))
            assert "[str, Any]" not in hints, f"{name}: {hints}"
