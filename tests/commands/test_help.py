"""The help of every command: an example that can be typed, and options in groups where there are many."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from mmap_st.cli import app
from mmap_st.commands.examples import EXAMPLES
from mmap_st.commands.options import PANELS

ROOT: Any = typer.main.get_command(app)
LONG = ("extract", "fit-head", "evaluate", "compare", "predict")


def commands(command: Any = ROOT, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command and group of commands by the words that call it."""
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {word}".strip())


EVERY = dict(commands())


def parse(words: list[str]) -> str:
    """Parse the words after ``mmap`` as the program does, run nothing, and return the command's name."""
    command, name, context, called = ROOT, "mmap", None, []
    while True:
        context = command.make_context(name, list(words), parent=context)
        if not hasattr(command, "commands"):
            return " ".join(called)
        rest = [*getattr(context, "_protected_args", ()), *context.args]
        name, command, words = command.resolve_command(context, rest)
        called.append(name)


def test_the_check_finds_the_commands_and_sees_what_does_not_parse() -> None:
    assert {"", "extract", "fit-head", "cohort", "cohort write", "cohort check", "heads"} <= set(EVERY)
    assert parse(["cohort", "her2st:x", "--out", "c.csv"]) == "cohort write"
    for words in (
        "extract cohort.csv",
        "extract a b --encoder uni --no-such",
        "fit-head a b --seed x",
        "nothing",
    ):
        with pytest.raises(Exception, match=r"Missing|No such|valid") as refused:
            parse(words.split())
        assert type(refused.value).__module__.endswith("exceptions")


@pytest.mark.parametrize("name", EVERY)
def test_help_ends_with_an_example_that_parses(
    name: str, mmap: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name in EXAMPLES, f"add an example of `mmap {name}` to commands/examples.py"
    line = EXAMPLES[name]
    program, *words = shlex.split(line)
    assert program == "mmap"
    parsed = parse(words)
    if name not in ("", "cohort"):
        assert parsed == name
    monkeypatch.setenv("COLUMNS", "80")
    for flag in ("--help", "-h"):
        shown = mmap(*name.split(), flag)
        assert shown.returncode == 0
        assert " ".join(shown.stdout.split()).endswith(f"Example: {line}")


def test_there_is_no_example_of_what_is_no_command() -> None:
    assert set(EXAMPLES) == set(EVERY)


@pytest.mark.parametrize("name", LONG)
def test_long_commands_group_their_options(name: str) -> None:
    for parameter in EVERY[name].params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            panel = parameter.rich_help_panel
            assert panel in PANELS, f"give {parameter.opts[0]} of `mmap {name}` a rich_help_panel of PANELS"
            assert parameter.help, parameter.opts


@pytest.mark.parametrize("name", LONG)
def test_groups_stand_in_one_order(name: str, mmap: Callable) -> None:
    shown = mmap(name, "--help").stdout
    places = [shown.find(f"─ {panel} ─") for panel in PANELS if f"─ {panel} ─" in shown]
    assert len(places) >= 3
    assert places == sorted(places)


@pytest.mark.parametrize("name", EVERY)
def test_what_help_says_is_written_alike(name: str) -> None:
    """Sentences: a capital (or a name, or a value that is typed) first, a full stop last."""
    command = EVERY[name]
    first = re.split(r"\n\n|; ", command.help.strip())[0]
    assert first[0].isupper()
    for parameter in command.params:
        said = getattr(parameter, "help", None)
        if said:
            assert said.endswith("."), (name, parameter.opts, said)
