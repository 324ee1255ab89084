"""Genes that a user names: the parts of ``--genes``, names and ids, and what to say of those not there."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mmap_st.data.counts import Counts, canonical_gene, gene_naming, is_ensembl, shared_genes, union_of_genes
from mmap_st.data.tables import duplicates, open_text, reading, some
from mmap_st.errors import PanelError, agreeing, counted, did_you_mean
from mmap_st.files import refuse_special

#: What stands before the colon of a rule that chooses genes.
RULES = ("hvg", "mean", "svg", "hest")
ALL_GENES = "all"
_FORMS = "all, hvg:N, mean:N, svg:N, hest:N, names or ids of genes, or a file with one gene a line"
_LIST_ENDINGS = {".txt", ".csv", ".tsv", ".tab", ".list", ".lst", ".gz"}
# Symbols are short: at errors' own cutoff nearly every one has neighbours.
_ALIKE = 0.75


@dataclass(frozen=True)
class GeneNames:
    """The genes that can be named.

    Attributes
    ----------
    usable
        Names of the genes that a panel may have.
    by_id
        Names of the genes of each id.
    others
        Names that some tables have, and that a panel may not have.
    """

    usable: Collection[str]
    by_id: Mapping[str, Sequence[str]] = field(default_factory=dict)
    others: Collection[str] = ()

    @classmethod
    def of_tables(cls, tables: Iterable[Counts], *, shared: bool) -> GeneNames:
        """Genes of count tables; only those that every table has may be used, or those of any."""
        tables = list(tables)
        named = [counts.genes for counts in tables]
        every = dict.fromkeys(union_of_genes(named))
        usable = dict.fromkeys(shared_genes(named)) if shared else every
        by_id: dict[str, dict[str, None]] = {}
        for counts in tables:
            for name, gene_id in zip(counts.genes, counts.gene_ids or (), strict=counts.gene_ids is not None):
                if gene_id:
                    by_id.setdefault(gene_id, {})[name] = None
        return cls(
            usable.keys(),
            {gene_id: tuple(names) for gene_id, names in by_id.items()},
            every.keys() - usable.keys(),
        )

    @classmethod
    def of_panel(cls, genes: Sequence[str], gene_ids: Sequence[str] | None = None) -> GeneNames:
        """Genes of a panel, with an id of each, or ""."""
        by_id: dict[str, tuple[str, ...]] = {}
        for name, gene_id in zip(genes, gene_ids or (), strict=gene_ids is not None):
            if gene_id:
                by_id[gene_id] = (*by_id.get(gene_id, ()), name)
        return cls(dict.fromkeys(genes).keys(), by_id)

    def find(self, word: str) -> str | None:
        """The gene that a word names: its name, or the id of this gene alone; an id may have a version."""
        for name in (word, canonical_gene(word)):
            if name in self.usable:
                return name
        found = self._of_id(word)
        return found[0] if len(found) == 1 else None

    def _of_id(self, word: str) -> list[str]:
        return [name for name in self.by_id.get(canonical_gene(word), ()) if name in self.usable]

    def _names(self, word: str) -> tuple[str, ...]:
        """What a word may stand for."""
        name = canonical_gene(word)
        return (word, name, *self.by_id.get(name, ()))

    def missing(self, words: Sequence[str], of: int) -> list[str]:
        """What to say of words that name no usable gene, which are some `of` all that were named."""
        elsewhere, several, absent = [], [], []
        for word in words:
            if len(self._of_id(word)) > 1:
                several.append(word)
            elif any(name in self.others for name in self._names(word)):
                elsewhere.append(word)
            else:
                absent.append(word)
        named = counted(of, "gene")
        notes = []
        if absent:
            is_are = agreeing(len(absent), "is", "are")
            notes.append(
                f"{len(absent)} of {named} {is_are} on no training slide, so not on the panel:"
                f" {some([*(word + self.near(word) for word in absent[:3]), *absent[3:]])}"
                f"{self._other_naming(absent)}"
            )
        if elsewhere:
            is_are, them = agreeing(len(elsewhere), "is", "are"), agreeing(len(elsewhere), "it", "them")
            notes.append(
                f"{len(elsewhere)} of {named} {is_are} not on every training slide, so not on the panel:"
                f" {some(elsewhere)} (--gene-set union takes {them})"
            )
        return notes + [
            f"{word} is the id of {' and '.join(self._of_id(word))}, so not on the panel; give one of these"
            " names"
            for word in several
        ]

    def near(self, word: str) -> str:
        """``" (did you mean ERBB2?)"`` for a word that is nearly the name of a gene, or ``""``."""
        if is_ensembl(word):  # any two ids are alike
            return ""
        folded = word.casefold()
        # Of tens of thousands of names only some: comparing all takes long.
        like = [name for name in self.usable if name[:1].casefold() == folded[:1]]
        same = [name for name in like if name.casefold() == folded]
        return did_you_mean(word, same or like, 0.0 if same else _ALIKE)

    def _other_naming(self, words: Sequence[str]) -> str:
        """A hint where tables have names of the other kind."""
        ids = gene_naming(self.usable) == "Ensembl ids"
        if ids and not any(map(is_ensembl, words)):
            return "; the tables name genes by Ensembl id"
        if not ids and not self.by_id and all(map(is_ensembl, words)):
            return "; the tables have no ids of genes"
        return ""


@dataclass(frozen=True)
class GenePart:
    """One part of ``--genes``: a rule such as ``hvg:250``, a file, or a gene."""

    text: str
    kind: Literal["rule", "file", "gene"]


def gene_parts(text: str, known: GeneNames) -> tuple[GenePart, ...]:
    """Split ``--genes`` at its commas.

    A text that is the path of a file is that file. In a list, a gene comes before a file of its name.

    Raises
    ------
    PanelError
        If it names nothing, a file that is not there, or a rule that does not exist.
    """
    if _is_file(text):
        return (GenePart(text, "file"),)
    parts = tuple(GenePart(part, _kind(part, known)) for part in _split(text))
    if not parts:
        raise PanelError(f"--genes {text!r} names nothing; give {_FORMS}.")
    for part in parts:
        if part.kind == "gene" and (":" in part.text or known.find(part.text) is None):
            refuse_no_gene(part.text)
    return parts


@dataclass(frozen=True)
class NamedGenes:
    """What ``--genes`` names.

    Attributes
    ----------
    text
        As it was given.
    parts
        Of the text.
    found
        The genes that each part names, in its order; none for a rule.
    missing
        Words that name no gene, as they are, in order.
    notes
        What the user should know of these, and of genes and files that have one name.
    """

    text: str
    parts: tuple[GenePart, ...]
    found: tuple[tuple[str, ...], ...]
    missing: tuple[str, ...]
    notes: list[str]

    @property
    def how(self) -> str:
        """What a panel records: the text, but of a file only its name."""
        if _is_one_file(self.parts):
            return f"file {Path(self.text).name}"
        return ",".join(Path(part.text).name if part.kind == "file" else part.text for part in self.parts)

    def check(self, *, exact: bool) -> None:
        """Refuse it if no gene is there and no rule gives any, or, if it must be exact, if one is missing."""
        nothing = not any(self.found) and all(part.kind != "rule" for part in self.parts)
        if nothing or (exact and self.missing):
            one_word = len(self.parts) == 1 and self.parts[0].kind == "gene"
            no_file = "there is no such file, and " if one_word else ""
            why = "; " if nothing else "; this protocol takes a panel as it is named: "
            raise PanelError(
                f"--genes {self.text}: {no_file}{'; '.join(self.notes)}{why}remove"
                f" {agreeing(len(self.missing), 'it', 'them')} or check the gene names."
            )


def name_genes(text: str, tables: Sequence[Counts], *, shared: bool) -> NamedGenes:
    """Find the genes that ``--genes`` names.

    Parameters
    ----------
    text
        See `mmap_st.data.panel.choose_panel`.
    tables
        Of the slides to choose on.
    shared
        Whether only genes that every table has may be used. A file alone takes those of any table.

    Raises
    ------
    PanelError
        As of `gene_parts` and `read_gene_list`.
    """
    known = GeneNames.of_tables(tables, shared=shared)
    parts = gene_parts(text, known)
    if shared and _is_one_file(parts):
        known = GeneNames.of_tables(tables, shared=False)
    words = [
        read_gene_list(Path(part.text)) if part.kind == "file" else (part.text,) * (part.kind == "gene")
        for part in parts
    ]
    found = tuple(tuple(gene for word in of_part if (gene := known.find(word))) for of_part in words)
    every = dict.fromkeys(word for of_part in words for word in of_part)
    missing = tuple(word for word in every if known.find(word) is None)
    taken = {"file": "genes of the file are", "gene": "gene is"}
    notes = known.missing(missing, len(every)) + [
        f"{part.text} is a gene and a file here: the {taken[part.kind]} on the panel"
        for part in parts
        if part.kind != "rule" and _is_file(part.text) and known.find(part.text) is not None
    ]
    return NamedGenes(text, parts, found, missing, notes)


def _is_one_file(parts: Sequence[GenePart]) -> bool:
    """Whether a request is a file, and no more."""
    return len(parts) == 1 and parts[0].kind == "file"


def plain_rule(text: str) -> bool:
    """Whether a panel is chosen by one rule alone, so that no gene is named."""
    return text == ALL_GENES or (_is_rule(text) and "," not in text and not _is_file(text))


def files_named(text: str, tables: Iterable[Counts]) -> list[Path]:
    """The files among the parts of ``--genes``, of which a panel's genes are read."""
    if plain_rule(text):
        return []
    parts = gene_parts(text, GeneNames.of_tables(tables, shared=False))
    return [Path(part.text) for part in parts if part.kind == "file"]


def read_gene_list(path: Path) -> tuple[str, ...]:
    """The genes of a file, one a line, in order; blank lines are passed over.

    Raises
    ------
    PanelError
        If it cannot be read, lists nothing, or lists a gene twice.
    """
    refuse_special(path, PanelError, "--genes")
    with reading(path, "text", PanelError), open_text(path, PanelError) as text:
        lines = text.read().splitlines()
    genes = [canonical_gene(line) for line in lines if line.strip()]
    if not genes:
        raise PanelError(f"{path} lists no genes; write one gene a line.")
    if duplicates(genes):
        raise PanelError(f"{path} lists genes more than once: {some(duplicates(genes))}.")
    return tuple(genes)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _kind(part: str, known: GeneNames) -> Literal["rule", "file", "gene"]:
    if _is_rule(part):
        return "rule"
    # A colon is a rule's: a gene with one in its name is named in a file, as one with a comma is.
    if ":" not in part and known.find(part) is not None:
        return "gene"
    return "file" if _is_file(part) else "gene"


def _is_rule(part: str) -> bool:
    return part == ALL_GENES or (":" in part and part.partition(":")[0] in RULES)


def _is_file(text: str) -> bool:
    """Whether something to read lies at a path, even if it is a pipe: reading refuses that."""
    return os.path.lexists(text) and not os.path.isdir(text)


def refuse_no_gene(word: str, forms: str = _FORMS) -> None:
    """Refuse what was meant to be a file or a rule: it would be called a missing gene.

    Parameters
    ----------
    forms
        What may be given.

    Raises
    ------
    PanelError
        Saying what is wrong with it.
    """
    if os.sep in word or Path(word).suffix.lower() in _LIST_ENDINGS:
        raise PanelError(f"--genes {word}: no such file; give {forms}.")
    rule, colon, _ = word.partition(":")
    if colon:
        raise PanelError(
            f"--genes {word}: there is no rule {rule!r}{_near_rule(rule)}; give {forms}. A gene with a colon"
            " in its name can be given in a file."
        )
    if word.casefold() in (ALL_GENES, *RULES):
        hint = ALL_GENES if word.casefold() == ALL_GENES else f"{word.casefold()}:250"
        raise PanelError(f"--genes {word}: no such file or gene (did you mean {hint}?); give {forms}.")


def _near_rule(word: str) -> str:
    return f" (did you mean {word.casefold()}?)" if word.casefold() in RULES else did_you_mean(word, RULES)
