"""Settings of heads: how they are read, and what is said of them; how the best of several is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from mmap_st.errors import HeadError
from mmap_st.head.interface import HeadMethod, best_of, make_settings, parse_settings, plan_validation
from mmap_st.head.linear.ridge import RIDGE, RidgeSettings
from mmap_st.head.registry import HEADS, settings_of
from mmap_st.head.settings import HeadSetting


@dataclass(frozen=True)
class Own:
    """Settings of all kinds.

    Attributes
    ----------
    count, share
        Numbers, of which this is
        a long description.
    """

    count: int = 3
    share: float = 0.5
    name: str = "a"
    on: bool = False
    maybe: int | None = None


OWN = HeadMethod("own", Own, lambda *_: None, lambda *_: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("count=7", 7),
        ("count=1e3", 1000),
        ("count=1E3", 1000),
        ("count=20.0", 20),
        ("count=-2", -2),
        ("count=9007199254740993", 9007199254740993),  # would be rounded as a float
        ("maybe=1e2", 100),
        ("maybe=auto", None),
        ("share=1e-3", 0.001),
        ("share=2", 2.0),
        ("name=1e3", "1e3"),
        ("on=TRUE", True),
    ],
)
def test_values_are_read_by_their_type(pair: str, value: object) -> None:
    found = getattr(parse_settings(OWN, [pair]), pair.split("=")[0])
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("pair", "part"),
    [
        ("count=2.5", "'2.5' is not a whole number; give one such as 100"),
        ("count=1e-3", "is not a whole number"),
        ("count=many", "is not a whole number"),
        ("count=inf", "is not a whole number"),
        ("count=", "is not a whole number"),
        ("maybe=half", "is not a whole number; give one such as 100, or auto"),
        ("share=nan", "is not a finite number; give one such as 0.1"),
        ("share=big", "is not a finite number"),
        ("on=1", "is not a truth value; give true or false"),
    ],
)
def test_what_is_not_of_the_type_is_refused(pair: str, part: str) -> None:
    with pytest.raises(HeadError, match=part) as refused:
        parse_settings(OWN, [pair])
    assert str(refused.value).startswith(f"--set {pair}: ")


def test_whole_numbers_of_heads_may_be_written_with_an_exponent() -> None:
    assert parse_settings(RIDGE, ["pca=1e3"]).pca == 1000
    for method in HEADS.values():
        for setting in settings_of(method):
            if "int" in setting.type:
                value = setting.default or 1
                found = getattr(parse_settings(method, [f"{setting.name}={value}e0"]), setting.name)
                assert (found, type(found)) == (value, int)


def test_plain_values_are_checked_too() -> None:
    assert make_settings(RIDGE, {"pca": 1e3}) == RidgeSettings(pca=1000)
    assert type(make_settings(RIDGE, {"pca": 1e3}).pca) is int
    assert make_settings(OWN, {"share": 2.5}).share == 2.5
    with pytest.raises(HeadError, match=r"pca: 2.5 is not a whole number"):
        make_settings(RIDGE, {"pca": 2.5})


def test_settings_are_described() -> None:
    assert settings_of(OWN) == [
        HeadSetting("count", 3, "int", "Numbers, of which this is a long description."),
        HeadSetting("share", 0.5, "float", "Numbers, of which this is a long description."),
        HeadSetting("name", "a", "str", ""),
        HeadSetting("on", False, "bool", ""),
        HeadSetting("maybe", None, "int | None", ""),
    ]
    assert settings_of("mean") == []
    with pytest.raises(HeadError, match="no head 'rigde'"):
        settings_of("rigde")


@pytest.mark.parametrize("name", HEADS)
def test_every_setting_of_a_head_has_a_meaning(name: str) -> None:
    described = settings_of(name)
    for setting in described:
        assert setting.meaning.endswith("."), setting
    defaults = {setting.name: setting.default for setting in described}
    assert make_settings(HEADS[name], defaults) == HEADS[name].settings_type()


def scores(*values: tuple[float, float]) -> list[dict[str, float]]:
    return [{"validation_pcc": pcc, "validation_mse": mse} for pcc, mse in values]


@pytest.mark.parametrize("unknown", [(np.nan, 1.0), (np.nan, np.nan), (0.9, np.nan), (0.9, np.inf)])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_scores_that_are_not_numbers_are_not_chosen(unknown: tuple[float, float], at: int) -> None:
    rows = scores((0.5, 2.0), (0.4, 1.0))
    rows.insert(at, *scores(unknown))
    assert best_of(rows) == {"validation_pcc": 0.5, "validation_mse": 2.0}


def test_no_score_that_is_a_number_is_one_sentence(head_slides) -> None:
    with pytest.raises(HeadError, match="no validation score is a finite number"):
        best_of(scores((np.nan, np.nan), (np.nan, 1.0)))
    *train, last = head_slides(slides=3)
    embedding = last.embedding.copy()
    embedding[3, 0, 0] = np.inf  # as where half precision overflowed
    broken = type(last)(**{**vars(last), "embedding": embedding})
    with pytest.raises(HeadError, match="no validation score is a finite number"), np.errstate(all="ignore"):
        RIDGE.fit(train, plan_validation(train, [broken]), RidgeSettings(), 0, lambda text: None)
