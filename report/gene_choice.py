"""The genes that a report is asked for, slide by slide, and what to say of those that cannot be drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from mmap_st.data import DEFAULT_PANEL, UNION, GeneNames, plain_rule, read_gene_list, refuse_no_gene, some
from mmap_st.errors import RequestError, agreeing
from mmap_st.head.runs import HeadCard

_FORMS = "names or ids of genes, or a file with one gene a line"


@dataclass
class GeneChoice:
    """Genes by name or id, and files of such.

    Attributes
    ----------
    words
        As they were given.
    cards
        Of the run's heads, which know ids and how panels were chosen; none where they are not at hand.
    missing
        The slides without a gene, by what it was called; filled while slides are looked at.
    seen
        Number of these slides.
    """

    words: Sequence[str]
    cards: Sequence[HeadCard] = ()
    missing: dict[str, list[str]] = field(default_factory=dict)
    seen: int = 0
    _alike: dict[str, str] = field(default_factory=dict)

    def of_slide(self, name: str, genes: Sequence[str], gene_ids: Sequence[str] | None = None) -> list[str]:
        """Those of the words that are genes of a prediction, each once.

        Parameters
        ----------
        name, genes, gene_ids
            Of the slide, and of the prediction; None: the ids that the cards know.

        Raises
        ------
        RequestError
            If a word is a rule or a file that is not there.
        """
        known = GeneNames.of_panel(genes, gene_ids or [self._id_of.get(gene, "") for gene in genes])
        found: dict[str, None] = {}
        self.seen += 1
        for word in dict.fromkeys(word for given in self.words for word in _expanded(given, known)):
            gene = known.find(word)
            if gene is not None:
                found[gene] = None
                continue
            self.missing.setdefault(word, []).append(name)
            self._alike.setdefault(word, known.near(word))
        return list(found)

    @property
    def notes(self) -> list[str]:
        """One sentence for the genes that the same slides lack."""
        words_of: dict[tuple[str, ...], list[str]] = {}
        for word, slides in self.missing.items():
            words_of.setdefault(tuple(slides), []).append(word)
        return [self._note(words, slides) for slides, words in words_of.items()]

    @property
    def how(self) -> str | None:
        """How the panel was chosen: folds are of one request."""
        return self.cards[0].panel.how if self.cards else None

    @cached_property
    def _id_of(self) -> dict[str, str]:
        return {
            gene: gene_id
            for card in self.cards
            for gene, gene_id in zip(card.panel.genes, card.panel.gene_ids or (), strict=False)
        }

    def _note(self, words: Sequence[str], slides: Sequence[str]) -> str:
        shown = some([word + self._alike[word] for word in words])
        is_are = agreeing(len(words), "is", "are")
        where = "" if len(slides) == self.seen else f" (slides: {some(slides)})"
        other = [word for word in words if not self._alike[word]]
        if self.how is None:  # predictions alone do not say
            note = f"{shown} {is_are} not on the panel of the head{where}"
            return f"{note}; fit a head with --genes {_with_genes(DEFAULT_PANEL, other)}" if other else note
        note = f"{shown} {is_are} not on the panel of this head ({self.how}){where}"
        return f"{note}; fit with --genes {_with_genes(self.how, other)}" if other else note


def _expanded(word: str, known: GeneNames) -> Sequence[str]:
    """The genes of a file, or the word itself."""
    if known.find(word) is not None:
        return (word,)
    if plain_rule(word):
        raise RequestError(
            f"--genes {word}: a map draws genes that are named; give {_FORMS}, or leave --genes out for"
            " those that are predicted best."
        )
    if os.path.isfile(word):  # of any text, however long
        return read_gene_list(Path(word))
    refuse_no_gene(word, _FORMS)
    return (word,)


def _with_genes(how: str, genes: Sequence[str]) -> str:
    """What `--genes` would make the same panel and these genes."""
    rule, _, _ = how.partition(", chosen on all slides")
    rule, of_union, _ = rule.removeprefix("file ").partition(f" of the {UNION}")
    text = ",".join([rule, *genes[:3]]) + (",..." if len(genes) > 3 else "")
    return text + (f" --gene-set {UNION}" if of_union else "")
