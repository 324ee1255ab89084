"""`mmap heads`, and `--set help` of the commands that fit heads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from mmap_st.head import registry
from mmap_st.head.listing import listed_heads, look_at_head
from mmap_st.head.registry import HEADS, settings_of

HEAD = '''
from dataclasses import dataclass
from mmap_st.heads import BlockNetwork, NetworkSettings, network_method, register

@dataclass(frozen=True)
class Mine(NetworkSettings):
    """Settings.

    Attributes
    ----------
    reach
        How far it looks; None: ``10`` spots.
    """

    reach: int | None = None
    sure: bool = True
    steps: tuple[int, ...] = (1, 2)

@dataclass(frozen=True)
class Vague(Mine):
    what: "Undefined" = 1

class Network(BlockNetwork):
    """Looks at what is near.

    And so on.
    """

OWN = network_method("own", Mine, Network)
VAGUE = network_method("vague", Vague, Network)

@register("marked", settings=Mine)
class Marked(Network):
    pass
'''


@pytest.fixture
def own(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "own.py").write_text(HEAD)
    yield f"{tmp_path / 'own.py'}:OWN"
    registry._REGISTERED.pop("marked", None)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str) -> Iterator[None]:
    (tmp_path / "failing.py").write_text("raise RuntimeError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("nearby", "own:OWN", registry.ENTRY_POINTS),
        EntryPoint("failing", "failing:HEAD", registry.ENTRY_POINTS),
        EntryPoint("vague", "own:VAGUE", registry.ENTRY_POINTS),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    registry.installed_heads.cache_clear()
    yield
    registry.installed_heads.cache_clear()


def test_all_that_is_built_in_says_what_it_is() -> None:
    listed = {head.name: head for head in listed_heads()}
    assert [name for name in listed if name in HEADS] == list(HEADS)
    for name in HEADS:
        head = listed[name]
        assert head.source == "built in"
        assert 20 < len(head.summary) < 100, name
        assert not head.summary.endswith("."), name
        assert all(setting.meaning for setting in head.settings), name
    assert listed["tcgn"].tokens
    assert not listed["ridge"].tokens


def test_the_list(mmap: Callable) -> None:
    done = mmap("heads")
    assert done.returncode == 0, done.stderr
    for name, method in HEADS.items():
        (line,) = [line for line in done.stdout.splitlines() if re.match(rf"│ {re.escape(name)} +│", line)]
        assert method.summary in line
    part = mmap("heads", "hest").stdout
    assert "hest-ridge-tuned" in part
    assert "triplex" not in part
    content = json.loads(mmap("heads", "--json").stdout)["heads"]
    assert {head["name"] for head in content} >= set(HEADS)
    unknown = mmap("heads", "rigde")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "did you mean ridge" in unknown.stderr


@pytest.mark.parametrize("name", HEADS)
def test_one_head_with_its_settings(name: str, mmap: Callable) -> None:
    shown = mmap("heads", name)
    assert shown.returncode == 0
    settings = settings_of(name)
    for setting in settings:
        (line,) = [line for line in shown.stdout.splitlines() if re.match(rf"│ {setting.name} +│", line)]
        assert line.split("│")[2].strip() == (
            "auto" if setting.default is None else str(setting.default).lower()
        )
        assert "None" not in line
        assert "``" not in line
    content = json.loads(mmap("heads", name, "--json").stdout)["heads"]
    assert [one["name"] for one in content[0]["settings"]] == [setting.name for setting in settings]
    helped = mmap("fit-head", "--head", name, "--set", "help")
    assert (helped.returncode, helped.stdout) == (0, shown.stdout)


def test_a_head_of_a_file(own: str, mmap: Callable) -> None:
    shown = mmap("heads", own)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("own: Looks at what is near.\nfrom: ")
    assert own in shown.stdout
    assert re.search(
        r"│ reach +│ auto +│ whole number or auto +│ How far it looks; auto: 10 spots. +│", shown.stdout
    )
    assert re.search(r"│ sure +│ true +│ true or false +│", shown.stdout)
    for head in (own, own.replace("OWN", "Marked")):
        for words in (("--set", "help", "--head", head), ("--head", head, "--set=help")):
            done = mmap("evaluate", *words)
            assert done.returncode == 0, done.stderr
            assert "How far it looks" in done.stdout
    assert mmap("heads", own.replace("OWN", "GONE")).returncode == 2
    assert mmap("fit-head", "--head", "gone.py:OWN", "--set", "help").returncode == 2


def test_heads_of_packages_and_those_that_cannot_be_loaded(installed: None, mmap: Callable) -> None:
    listed = {head.name: head for head in listed_heads()}
    assert listed["nearby"].source == "own:OWN"  # no package here, so what the entry point names
    assert listed["nearby"].summary == "Looks at what is near."
    assert "RuntimeError: no" in listed["failing"].broken
    assert look_at_head("nearby").name == "nearby"
    table = mmap("heads")
    assert table.returncode == 0
    assert "RuntimeError: no" in table.stdout
    assert "'Undefined' is not defined" in table.stdout
    for name in ("failing", "vague"):
        refused = mmap("heads", name)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    content = {head["name"]: head for head in json.loads(mmap("heads", "--json").stdout)["heads"]}
    assert content["nearby"]["settings"][-1]["default"] == "(1, 2)"
    assert "RuntimeError" in content["failing"]["broken"]


@pytest.mark.parametrize(
    ("command", "words", "heads"),
    [
        ("fit-head", (), ["mmap"]),
        ("fit-head", ("--protocol", "hest-bench"), ["hest-ridge"]),
        ("evaluate", ("COHORT", "STORE", "--out", "x", "--set", "alpha=1"), ["mmap"]),
        ("compare", (), ["mmap", "ridge", "mean"]),
        ("compare", ("--heads", "knn, mlp"), ["knn", "mlp"]),
        ("compare", ("--heads", "all"), list(HEADS)),
    ],
)
def test_help_on_settings_needs_nothing_else_and_does_nothing_else(
    command: str, words: tuple[str, ...], heads: list[str], mmap: Callable, tmp_path: Path
) -> None:
    for order in ((*words, "--set", "help"), ("--set", "help", *words)):
        done = mmap(command, *order, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.findall(r"^([a-z0-9-]+): .*\nfrom: ", done.stdout, flags=re.M) == heads
    assert not list(tmp_path.iterdir())
    example = "--set knn.neighbours=auto" if "knn" in heads else "KEY=VALUE"
    assert example in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--set", "help", "--hed", "ridge"), "No such option: --hed"),
        (("--set", "help", "--head", "rigde"), "did you mean ridge"),
        (("--set", "help", "--protocol", "hest"), "did you mean hest-bench"),
        (("--genes", "help"), "Missing argument"),
        (("--set", "alpha=help"), "Missing argument"),
    ],
)
def test_other_words_are_not_taken_for_it(words: tuple[str, ...], said: str, mmap: Callable) -> None:
    done = mmap("fit-head", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_help_on_the_command_comes_first(mmap: Callable) -> None:
    shown = mmap("fit-head", "--set", "help", "--help")
    assert shown.returncode == 0
    assert "Usage:" in shown.stdout
