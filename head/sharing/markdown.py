"""README.md: a card as Markdown, with the front matter of a model card on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmap_st.errors import printable
from mmap_st.head.sharing.model_card import ModelCard
from mmap_st.head.sharing.sections import card_sections, title_of
from mmap_st.head.sharing.wording import CardTable, Section

_LIBRARY = "mmap-st"
_TAGS = ("spatial-transcriptomics", "histopathology", "gene-expression", "h-and-e")
# What may be a tag as it is; other names are none.
_TAG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
# Letters, digits and what starts nothing anywhere in Markdown or HTML, by itself or with others.
_PLAIN = re.compile(r"[^\W_]|[ ,.:;()+/%=?&'-]")
# An underscore within a word, which is no emphasis.
_INSIDE_A_WORD = re.compile(r"(?<=[^\W_])_(?=[^\W_])")
# What would be a link, a reference, an emoji, or the start of a list or of another block.
_MEANT = re.compile(r"(?i)www\.|//|&(?=[#\w]+;)|:(?=[+\w-]+:)|^\W|^_|^\d+(?=[.)](?:\s|$))")


def markdown_of(card: ModelCard) -> str:
    """The text of README.md; names in it come from others, and are nothing but text."""
    parts = [_front_matter(card), f"# {escaped(title_of(card))}\n"]
    parts += [
        "This card was made by `mmap` from what is recorded with the head; `card.json` holds the same for"
        " programs.\n"
    ]
    parts += [_section(section) for section in card_sections(card)]
    return "\n".join(parts)


def _front_matter(card: ModelCard) -> str:
    from huggingface_hub import ModelCardData

    names = [card.head, *(encoder.name for encoder in card.encoders)]
    tags = [*_TAGS, *(name for name in dict.fromkeys(names) if _TAG.fullmatch(name))]
    models = [hub for encoder in card.encoders if (hub := encoder.hub) and _REPOSITORY.fullmatch(hub)]
    # The licence of the head is its owner's to say: there is no key for it.
    about = ModelCardData(library_name=_LIBRARY, tags=tags, base_model=models or None)
    return f"---\n{about.to_yaml(line_break=chr(10))}\n---\n"


def _section(section: Section) -> str:
    parts = [f"## {section.title}\n"]
    if section.lines:
        parts.append("".join(f"- {escaped(line)}\n" for line in section.lines))
    parts += [_table(table) for table in section.tables]
    if section.commands:
        parts.append("```bash\n" + "".join(f"{printable(line)}\n" for line in section.commands) + "```\n")
    return "\n".join(parts)


def _table(table: CardTable) -> str:
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    lines = [_row([escaped(column) for column in table.columns]), _row(rule)]
    lines += [_row([escaped(cell) for cell in row]) for row in table.rows]
    heading = f"{escaped(table.title)}:\n\n" if table.title else ""
    return heading + "".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def escaped(text: str) -> str:
    """A text that is shown as it is, in one line, by whatever reads Markdown, in tables too.

    What could start something is written as a numeric reference, which is never markup: that holds in all
    dialects, where backslashes do not.
    """
    shown = printable(text).strip()
    within = {found.start() for found in _INSIDE_A_WORD.finditer(shown)}
    meant = {found.end() - 1 for found in _MEANT.finditer(shown)}
    return "".join(
        letter
        if index not in meant and (index in within or _PLAIN.fullmatch(letter))
        else f"&#{ord(letter)};"
        for index, letter in enumerate(shown)
    )
