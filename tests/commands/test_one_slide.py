"""Where there is one of something, no message has its plural."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

#: A count of one, and a word that looks like a plural after it.
_PLURAL_OF_ONE = re.compile(r"(?<![\d.,:x])\b1 (?!has\b|is\b|was\b)[a-z]{2,}s\b")


@pytest.fixture(scope="module")
def folder(section_writer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("one")
    section_writer("A1", root=made / "her2st", side=6)
    np.save(made / "features.npy", np.random.default_rng(0).normal(size=(36, 8)).astype(np.float32))
    return made


MINE = ("--encoder", "mine")
FIT = ("fit-head", "{f}/cohort.csv", "{f}/store", *MINE, "--head", "ridge", "--set", "alpha=1e4", "--genes")
TINY = ("--encoder", "timm:test_efficientnet", "--random-weights", "--mpp", "1", "--device", "cpu")
#: Commands in this order, and what each says.
COMMANDS = {
    "cohort": (("cohort", "her2st:{f}/her2st", "--out", "{f}/cohort.csv"), "1 slide "),
    "check": (("cohort", "check", "{f}/cohort.csv"), "1 slide "),
    "import": (
        ("import", "{f}/store", "--cohort", "{f}/cohort.csv", *MINE, "--mpp", "1", "--slide", "A1", "--features",
         "{f}/features.npy"),
        "slides: 1 imported",
    ),
    "extract": (
        ("extract", "{f}/cohort.csv", "{f}/grid", *TINY, "--spots", "grid:200"),
        "0 slides get the spots of grid:200; 1 has spots of its own",
    ),
    "prototypes": (("prototypes", "{f}/grid", *MINE), "no embeddings of 'mine'"),
    "fit one gene": ((*FIT, "hvg:1", "--out", "{f}/run"), "1 slide train, 0 validate, 0 test; 1 gene (hvg:1)"),
    "fit too many": ((*FIT, "hvg:99", "--out", "{f}/many"), "99 genes are requested; there are 6 to choose"),
    "predict": (("predict", "{f}/run", "{f}/store", "--out", "{f}/p"), "A1.h5ad"),
}  # fmt: skip


@pytest.mark.parametrize("key", COMMANDS)
def test_no_message_has_the_plural_of_one(key: str, folder: Path, mmap: Callable) -> None:
    words, said = COMMANDS[key]
    done = mmap(*(word.replace("{f}", str(folder)) for word in words))
    shown = " ".join((done.stdout + done.stderr).split())
    assert said in shown
    assert _PLURAL_OF_ONE.findall(shown) == []
