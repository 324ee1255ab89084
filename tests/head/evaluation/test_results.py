"""Results as types: read from files of an earlier version, written again byte for byte, and as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from mmap_st.errors import HeadError
from mmap_st.head.evaluation import AblationRow, ComparisonResult, read_comparison, read_evaluation
from mmap_st.head.evaluation.ablations import _flat
from mmap_st.head.runs import HeadCard, read_metrics, write_table
from mmap_st.head.scoring import Scores, SlideScores, as_json, from_json, read_result, write_json

BEFORE = Path(__file__).parents[2] / "data_of_before" / "results"


def read_ablations(path: Path) -> list[AblationRow]:
    return [from_json(AblationRow, row) for row in json.loads(path.read_text())]


READERS: dict[str, Callable[[Path], object]] = {
    "fit/metrics.json": read_metrics,
    "untested/metrics.json": read_metrics,
    "legacy/metrics.json": read_metrics,
    "fit/head.json": lambda path: read_result(HeadCard, path),
    "untested/head.json": lambda path: read_result(HeadCard, path),
    "legacy/head.json": lambda path: read_result(HeadCard, path),
    "evaluation/metrics.json": read_evaluation,
    "evaluation/ablations.json": read_ablations,
    "comparison/compare.json": read_comparison,
}


@pytest.mark.parametrize("name", READERS)
def test_files_of_before_are_read_and_written_byte_for_byte(name: str, tmp_path: Path) -> None:
    write_json(tmp_path / "again.json", READERS[name](BEFORE / name))
    assert (tmp_path / "again.json").read_bytes() == (BEFORE / name).read_bytes()


def test_tables_are_the_files_of_before_byte_for_byte(tmp_path: Path) -> None:
    comparison = read_comparison(BEFORE / "comparison" / "compare.json")
    write_table(tmp_path / "compare.csv", comparison.table.to_dicts())
    ablations = read_ablations(BEFORE / "evaluation" / "ablations.json")
    write_table(tmp_path / "ablations.csv", [_flat(row) for row in ablations])
    for name in ("comparison/compare.csv", "evaluation/ablations.csv"):
        assert (tmp_path / Path(name).name).read_bytes() == (BEFORE / name).read_bytes()


@pytest.mark.parametrize("name", ["fit/metrics.json", "evaluation/metrics.json", "comparison/compare.json"])
def test_numbers_that_are_not_finite_are_null_in_files_and_nan_in_memory(name: str, tmp_path: Path) -> None:
    content = json.loads((BEFORE / name).read_text())

    def blank(value: object) -> object:
        if isinstance(value, dict):
            return {k: None if k == "pcc_hvg50" else blank(v) for k, v in value.items()}
        return [blank(v) for v in value] if isinstance(value, list) else value

    (tmp_path / "null.json").write_text(json.dumps(blank(content), indent=2) + "\n")
    found = READERS[name](tmp_path / "null.json")
    write_json(tmp_path / "again.json", found)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "null.json").read_bytes()
    if name == "fit/metrics.json":
        assert math.isnan(next(iter(read_metrics(tmp_path / "null.json").test.slides.values())).pcc_hvg50)


def test_keys_of_newer_and_older_versions_do_not_matter(tmp_path: Path) -> None:
    content = json.loads((BEFORE / "fit" / "metrics.json").read_text())
    whole = read_metrics(BEFORE / "fit" / "metrics.json")
    content["of_a_newer_version"] = {"a": [1]}
    content["test"]["of_a_newer_version"] = 1
    content["test"]["slides"]["F1"]["of_a_newer_version"] = "x"
    (tmp_path / "newer.json").write_text(json.dumps(content))
    assert read_metrics(tmp_path / "newer.json") == whole
    del content["prediction_intervals"], content["baseline_ridge"]
    (tmp_path / "older.json").write_text(json.dumps(content))
    assert read_metrics(tmp_path / "older.json") == replace(
        whole, prediction_intervals=None, baseline_ridge=None
    )


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "cannot be read"),
        ("[]", "does not hold a JSON object"),
        ("{}", "is damaged"),
        ('{"protocol": {"name": 3}}', r"is damaged \(RunMetrics.protocol.name is 3"),
        ('{"protocol": "x"}', r"RunMetrics.protocol is 'x'"),
    ],
)
def test_a_damaged_file_is_one_sentence(content: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(HeadError, match=part):
        read_metrics(tmp_path / "metrics.json")


def test_a_run_is_one_row_per_predictor_and_slide() -> None:
    metrics = read_metrics(BEFORE / "fit" / "metrics.json")
    table = metrics.to_polars()
    assert table.columns == [
        "predictor", "slide", "n_spots", "pcc", "pcc_hvg50", "mse", "mae", "undefined_genes",
    ]  # fmt: skip
    assert table.select("predictor", "slide").rows() == [
        (predictor, slide) for predictor in ("head", "ridge", "mean") for slide in ("F1", "G1")
    ]
    head = table.filter(pl.col("predictor") == "head")
    assert head["pcc"].mean() == pytest.approx(metrics.test.pcc_slide)
    assert metrics.table["mse"].to_list() == [
        metrics.test.mse, metrics.baseline_ridge.mse, metrics.baseline_mean.mse,
    ]  # fmt: skip
    assert repr(metrics).splitlines()[0] == "RunMetrics: 5 slides train, 0 validate, 2 test; 8 genes"
    assert "head: Scores(pcc_slide=" in repr(metrics)
    untested = read_metrics(BEFORE / "untested" / "metrics.json")
    assert untested.to_polars().is_empty()
    assert untested.table.is_empty()


def test_an_evaluation_has_folds_and_intervals() -> None:
    metrics = read_evaluation(BEFORE / "evaluation" / "metrics.json")
    table = metrics.to_polars()
    assert table["fold"].to_list() == [*"ABCDEFG"] * 3
    low, high = metrics.test.interval("pcc_slide")
    assert metrics.table.row(0, named=True)["pcc_slide_low"] == low
    assert metrics.table.row(0, named=True)["pcc_slide_high"] == high
    assert metrics.test.of_slide("A1", "pcc_slide_hvg50") == metrics.test.slides["A1"].pcc_hvg50
    assert "7 slides in 7 folds, seeds: 2" in repr(metrics)


def test_a_comparison_says_which_rows_were_not_evaluated() -> None:
    result = read_comparison(BEFORE / "comparison" / "compare.json")
    assert [row.head for row in result.evaluated] == ["ridge", "mlp"] * 2
    assert result.table["head"].to_list() == ["ridge", "mlp", "tcgn"] * 2
    assert result.table["pcc_slide"].null_count() == 2
    assert result.to_polars()["row"].n_unique() == 4
    mlp = result.evaluated[1]
    assert mlp.difference("ridge", "mse").p_holm is not None
    assert mlp.difference("mmap", "mse") is None
    assert "4 of 6 rows evaluated" in repr(result)
    assert "tcgn needs tokens" in repr(result)
    assert ComparisonResult(None, ()).table.is_empty()


def test_scores_of_one_run_and_of_a_cross_validation_have_their_own_order() -> None:
    slides = {"A": SlideScores(3, 0.1, 0.2, 0.3, 0)}
    scores = Scores(slides, 0.1, float("nan"), 0.4, 0.2, 0.3)
    assert list(as_json(scores)) == ["slides", "pcc_slide", "pcc_slide_hvg50", "pcc_pooled", "mse", "mae"]
    assert as_json(scores)["pcc_slide_hvg50"] is None
    folded = replace(scores, intervals={"mse": (0.1, 0.3)}, spread={"mse": 0.0})
    assert list(as_json(folded)) == [
        "slides", "pcc_slide", "pcc_slide_hvg50", "mse", "mae", "pcc_pooled", "intervals", "spread",
    ]  # fmt: skip
    assert from_json(Scores, as_json(folded)).intervals == {"mse": (0.1, 0.3)}
