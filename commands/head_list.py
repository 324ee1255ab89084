"""The command `heads`, and ``--set help`` of the commands that fit heads."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmap_st.commands import console
from mmap_st.commands.options import Command

if TYPE_CHECKING:
    from mmap_st.head import HeadSetting, ListedHead

_HELP = "help"


def heads(
    name: Annotated[
        str,
        typer.Argument(metavar="[WORD]", help="Part of a name; a whole name, or FILE.py:NAME, shows all."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all that is known.")] = False,
) -> None:
    """List the available heads, or show one with its settings."""
    from mmap_st.head import listed_heads, look_at_head

    every = [] if ".py:" in name else listed_heads()
    found = [head for head in every if name.lower() in head.name.lower()]
    whole = next((head.name for head in found if head.name.lower() == name.lower()), "")
    if whole or not found:
        found = [look_at_head(whole or name)]
    if as_json:
        console.say_json({"heads": [_as_json(head) for head in found]})
    elif len(found) == 1 and name and not found[0].broken:
        show_head(found[0])
    else:
        _show_heads(found)


def _as_json(head: ListedHead) -> dict[str, object]:
    """All that is known of a head; defaults that JSON has no word for, as a user's head may have, as text."""
    content = dataclasses.asdict(head)
    for setting in content["settings"]:
        if not isinstance(setting["default"], bool | int | float | str | None):
            setting["default"] = str(setting["default"])
    return content


def _show_heads(found: Sequence[ListedHead]) -> None:
    rows = [(head.name, head.source, head.broken or head.summary) for head in found]
    console.show_table("", ("head", "from", "what it is"), rows, left=(1, 2))
    console.say("Your own head is FILE.py:NAME. `mmap heads NAME` shows a head's settings.")


def show_head(head: ListedHead, prefix: str = "") -> None:
    """What a head is, and its settings; `prefix` stands before their names in ``--set``."""
    console.say(f"{head.name}: {head.summary}" if head.summary else head.name)
    notes = [
        f"from: {head.source}",
        *(["needs embeddings with tokens (mmap extract --tokens)"] * head.tokens),
    ]
    for note in notes:
        console.say(note)
    if not head.settings:
        console.say("it has no settings")
        return
    rows = [(s.name, _default(s), _type(s), _meaning(s)) for s in head.settings]
    console.show_table("", ("setting", "default", "type", "meaning"), rows, left=(1, 2, 3))
    form, first = "HEAD.KEY=VALUE" if prefix else "KEY=VALUE", head.settings[0]
    console.say(f"Set one with --set {form}, such as --set {prefix}{first.name}={_default(first)}.")


def _default(setting: HeadSetting) -> str:
    """As ``--set`` takes it."""
    if setting.default is None:
        return "auto"
    return str(setting.default).lower() if isinstance(setting.default, bool) else str(setting.default)


def _type(setting: HeadSetting) -> str:
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "None": "auto"}
    return " or ".join(words.get(part, part) for part in setting.type.split(" | "))


def _meaning(setting: HeadSetting) -> str:
    """Without the marks of a docstring, and with None as ``--set`` takes it."""
    return re.sub(r"\bNone:", "auto:", setting.meaning.replace("``", "").replace("`", ""))


class FitsHeads(Command):
    """A command with ``--set``: ``--set help`` shows the settings of its heads and does nothing else.

    What the command needs otherwise need not be given then.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line, unless they ask for the settings."""
        if _HELP in args or f"--set={_HELP}" in args:
            given, _, _ = self.make_parser(ctx).parse_args(list(args))
            if _HELP in (given.get("set_") or ()) and not given.get("help"):
                _show_settings({**{option.name: option.default for option in self.params}, **given})
                ctx.exit()
        return super().parse_args(ctx, args)


def _show_settings(given: dict[str, Any]) -> None:
    """Show the settings of the heads that a command would fit."""
    from mmap_st.head import HEADS, look_at_head
    from mmap_st.head.runs import evaluation_protocol

    protocol = evaluation_protocol(given["protocol"])
    words = given.get("heads") or given.get("head") or protocol.head
    names = [word.strip() for word in words.split(",") if word.strip()]
    for number, name in enumerate(HEADS if names == ["all"] else names):
        if number:
            console.say("")
        head = look_at_head(name)
        show_head(head, f"{head.name}." if "heads" in given else "")
