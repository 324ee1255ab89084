"""Heads that users bring: the example of docs/heads.md, and what goes wrong with others."""

from __future__ import annotations

import json
import pickle
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from mmap_st.data.cohort import Cohort
from mmap_st.errors import HeadError
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head import registry as user
from mmap_st.head.evaluation.comparison import compare
from mmap_st.head.evaluation.comparison_rows import CompareRequest, make_heads
from mmap_st.head.registry import head_method
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.prediction import predict_slides
from mmap_st.head.runs.prediction_files import read_prediction
from mmap_st.head.runs.request import fit_request
from mmap_st.head.runs.saved_head import read_head

DOCS = Path(__file__).resolve().parents[2] / "docs" / "heads.md"
ENCODER = "efficientnet-lite0"
QUICK = ("epochs=3", "width=16")


def example() -> str:
    return re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), flags=re.S)[0]


@pytest.fixture
def near(tmp_path: Path) -> str:
    (tmp_path / "near.py").write_text(example())
    return f"{tmp_path / 'near.py'}:NEAR"


def test_the_example_is_short() -> None:
    assert len(example().splitlines()) < 60


def test_it_is_fitted_saved_and_predicts_like_any_other(
    near: str, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    request = fit_request(ENCODER, near, pairs=QUICK, genes="hvg:12", test="slide=E1", baselines=False)
    report = fit_head(cohort, store, request, tmp_path / "run")
    assert report.metrics.test.pcc_slide > 0
    card = json.loads((tmp_path / "run" / "head.json").read_text())
    assert card["head"] == near
    written = predict_slides(tmp_path / "run", store, tmp_path / "out", ["E1"]).written
    fitted = read_prediction(tmp_path / "run" / "predictions" / "E1.h5ad")
    np.testing.assert_allclose(read_prediction(written["E1"]).X, fitted.X, atol=1e-5)


def test_it_is_compared_in_processes_of_their_own(
    near: str, cohort: Cohort, store: FeatureStore, tmp_path: Path
) -> None:
    folds = tmp_path / "folds.csv"
    folds.write_text("slide,fold\nA1,1\nB1,2\n")
    heads = make_heads([near, "mean"], [f"near.{pair}" for pair in QUICK], "default", genes="hvg:12")
    request = CompareRequest((ENCODER,), heads, folds=str(folds), jobs=2)
    report = compare(cohort, store, request, tmp_path / "run")
    assert [row.key for row in report.result.rows] == [f"{ENCODER}/near", f"{ENCODER}/mean"]
    assert not report.failed_folds
    changed = example().replace("GELU", "ReLU")
    (tmp_path / "near.py").write_text(changed)
    heads = make_heads([near, "mean"], [f"near.{pair}" for pair in QUICK], "default", genes="hvg:12")
    with pytest.raises(HeadError.__mro__[1], match="head_code_sha256"):
        compare(cohort, store, CompareRequest((ENCODER,), heads, folds=str(folds)), tmp_path / "run")


def test_a_run_of_changed_code_is_told_of(
    near: str, cohort: Cohort, store: FeatureStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = fit_request(
        ENCODER, near, pairs=("epochs=1",), genes="hvg:12", test="slide=E1", baselines=False
    )
    fit_head(cohort, store, request, tmp_path / "run")
    predict_slides(tmp_path / "run", store, tmp_path / "out", ["E1"])
    assert not caplog.records
    (tmp_path / "near.py").write_text(example() + "\n# changed\n")
    with pytest.raises(HeadError, match="is not executed"):
        predict_slides(tmp_path / "run", store, tmp_path / "out", ["E1"])
    with pytest.raises(HeadError, match="trained with other code than this"):
        read_head(tmp_path / "run", near)
    changed = read_head(tmp_path / "run", near, allow_changed_code=True)
    predict_slides(changed, store, tmp_path / "out", ["E1"])
    assert "other code of the head near" in caplog.text
    (tmp_path / "near.py").unlink()
    with pytest.raises(HeadError, match="there is no such file"):
        read_head(tmp_path / "run", near)


def test_code_that_changes_while_it_is_used_is_refused(near: str, tmp_path: Path) -> None:
    request = fit_request(ENCODER, near)
    assert pickle.loads(pickle.dumps(request)).method.code == request.method.code
    pickled = pickle.dumps(request)
    (tmp_path / "near.py").write_text(example() + "\n# changed\n")
    with pytest.raises(HeadError, match="was changed while it was used"):
        pickle.loads(pickled)


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("NEAR = 3", "of type int, not a HeadMethod"),
        ("OTHER = 3", "is not defined"),
        ("raise ValueError('no luck')", "ValueError: no luck"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("from mmap_st.head.linear.mean import MEAN as NEAR", "a built-in head's"),
        (
            "from mmap_st.head.interface import HeadMethod\nNEAR = HeadMethod('a', int, 0, 0)",
            "not a dataclass",
        ),
        (
            "from mmap_st.head.interface import HeadMethod\nfrom mmap_st.head.linear.mean import MeanSettings\n"
            "NEAR = HeadMethod('a.b', MeanSettings, 0, 0)",
            "letters, digits",
        ),
    ],
)
def test_files_that_are_no_head_are_one_sentence(tmp_path: Path, code: str, part: str) -> None:
    (tmp_path / "near.py").write_text(code)
    with pytest.raises(HeadError, match=part):
        head_method(f"{tmp_path / 'near.py'}:NEAR")


def test_installed_packages_offer_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package_of_heads.py").write_text(example())
    (tmp_path / "broken_heads.py").write_text("raise RuntimeError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("nearby", "package_of_heads:NEAR", user.ENTRY_POINTS),
        EntryPoint("ridge", "package_of_heads:NEAR", user.ENTRY_POINTS),
        EntryPoint("broken", "broken_heads:HEAD", user.ENTRY_POINTS),
    ]
    monkeypatch.setattr(user, "entry_points", lambda group: points)
    user.installed_heads.cache_clear()
    try:
        assert head_method("nearby").name == "nearby"
        assert len(head_method("nearby").code) == 64
        with pytest.raises(HeadError, match="RuntimeError: broken"):
            head_method("broken")
        assert head_method("ridge").code == ""
        with pytest.raises(HeadError, match="did you mean nearby"):
            head_method("nearbye")
    finally:
        user.installed_heads.cache_clear()


def test_every_head_is_in_the_table_and_in_its_file() -> None:
    from mmap_st.head.registry import HEADS

    rows = re.findall(
        r"^\| `([a-z0-9-]+)` \|.*\| (?:`(\S+)`|\[\S+\]\(\S+\)) \|$", DOCS.read_text("utf-8"), flags=re.M
    )
    missing = set(HEADS) ^ {name for name, _ in rows}
    assert not missing, f"add or remove the rows of {missing} in docs/heads.md"
    for name, file in rows:
        assert not file or f'"{name}"' in (DOCS.parents[1] / file).read_text("utf-8"), name
