"""The input of heads: one slide's embeddings (held where memory allows), targets and prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mmap_st._moved import old_attribute
from mmap_st.data import Targets
from mmap_st.extract.store import BLOCK_BYTES, Embeddings, RowIndex, StoredRows, row_blocks

#: Bytes of embeddings that a fit holds, at most: some 80,000 spots at 3 magnifications of 1,024 numbers.
MAX_BYTES = 1 << 30

Rows = NDArray[np.int64]


class RowCache:
    """Holds what slides read, the first of them first, until its bytes are used up.

    Parameters
    ----------
    max_bytes
        Largest size of all arrays that it holds.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._left = max_bytes

    def of(self, stored: StoredRows) -> CachedRows:
        """Return rows of a store that are held once they are read; nothing is read yet."""
        count = stored.shape[1]
        return CachedRows(_Slide(stored, self, [None] * count), tuple(range(count)), None)

    def reserve(self, size: int) -> bool:
        """Whether `size` more bytes may be held; they are then counted."""
        if size > self._left:
            return False
        self._left -= size
        return True


@dataclass
class _Slide:
    """All rows of one slide, by magnification: (n, ...) float32 where they are held, else None."""

    stored: StoredRows
    cache: RowCache
    held: list[NDArray[np.float32] | None]
    tried: set[int] = field(default_factory=set)

    def at(self, magnification: int) -> NDArray[np.float32] | None:
        """Every row at one magnification, read now if it is not held and may be; None: there is no room."""
        if magnification not in self.tried:
            self.tried.add(magnification)
            n, _, *inner = self.stored.shape
            if self.cache.reserve(4 * n * int(np.prod(inner))):
                self.held[magnification] = self.stored.at(magnification)[:][:, 0]
        return self.held[magnification]


@dataclass(frozen=True)
class CachedRows:
    """Rows of a slide that reads as `StoredRows` do; what has no room in the cache is read anew each time.

    Attributes
    ----------
    slide
        All of its rows, shared by its subsets.
    magnifications
        Which of them, by number.
    rows
        (n,) int64, which rows; None: all.
    """

    slide: _Slide
    magnifications: tuple[int, ...]
    rows: Rows | None

    @property
    def shape(self) -> tuple[int, ...]:
        """n, M and the shape of what one magnification has of a spot."""
        n, _, *inner = self.slide.stored.shape
        return n if self.rows is None else len(self.rows), len(self.magnifications), *inner

    def __getitem__(self, rows: RowIndex, /) -> NDArray[np.float32]:
        every = np.arange(self.slide.stored.shape[0]) if self.rows is None else self.rows
        wanted = every[rows]
        found = np.empty((len(wanted), *self.shape[1:]), np.float32)
        for number, magnification in enumerate(self.magnifications):
            held = self.slide.at(magnification)
            if held is None:
                found[:, number] = self.slide.stored.at(magnification)[wanted][:, 0]
            else:
                np.take(held, wanted, axis=0, out=found[:, number])
        return found

    def subset(self, rows: Rows) -> CachedRows:
        """Return these rows only; nothing is read."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def at(self, magnification: int) -> CachedRows:
        """Return one magnification only, by its number from 0; nothing is read."""
        return replace(self, magnifications=(self.magnifications[magnification],))


# Columns whose standard deviation is below this count as constant.
_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True)
class EmbeddingScaler:
    """Standardises the embeddings of one slide by their mean and standard deviation.

    Attributes
    ----------
    mean
        (M, d) float64.
    scale
        (M, d) float64, 1 / standard deviation; 0 for columns that do not vary.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]

    of = old_attribute("of", "transform")

    def transform(self, embedding: NDArray[np.float32]) -> NDArray[np.float32]:
        """(k, M, d) float32: each column of the embeddings with mean 0 and standard deviation 1."""
        standardised = np.empty_like(embedding)
        # One magnification at a time: a float64 copy of all would be the largest array of a fit.
        for m, (mean, scale) in enumerate(zip(self.mean, self.scale, strict=True)):
            standardised[:, m] = (embedding[:, m] - mean) * scale
        return standardised


def fit_scaler(
    embedding: Embeddings, valid: NDArray[np.bool_], block_bytes: int = BLOCK_BYTES
) -> EmbeddingScaler:
    """Compute mean and standard deviation over a slide's valid spots, read in blocks of rows.

    Expression is not used, so that a slide that was never sequenced is treated in the same way.
    """
    count = 0
    mean, squares = np.zeros((2, *embedding.shape[1:]))
    for _, rows in row_blocks(embedding, np.flatnonzero(valid), block_bytes):
        block, before = embedding[rows], count
        count += len(rows)
        for m in range(len(mean)):
            values = block[:, m].astype(np.float64)
            own = values.mean(axis=0)
            difference = own - mean[m]
            # Pairwise update of mean and sum of squares (Chan, Golub and LeVeque 1983).
            squares[m] += ((values - own) ** 2).sum(axis=0) + difference**2 * (before * len(rows) / count)
            mean[m] += difference * (len(rows) / count)
    spread = np.sqrt(squares / max(count, 1))
    return EmbeddingScaler(
        mean, np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > _SMALLEST_SPREAD)
    )


@dataclass(frozen=True)
class HeadSlide:
    """One slide as a head sees it.

    Attributes
    ----------
    name, patient
        Of the slide.
    ids
        (n,) spot ids.
    xy
        (n, 2) float64, centres in level-0 pixels.
    embedding
        (n, M, d) float32, finest magnification first; rows that are not valid are NaN. The rows of a slide
        in a store are read when they are indexed.
    valid
        (n,) whether every magnification of the spot could be read.
    target
        (n, G) on the panel; None for a slide that was never sequenced.
    centre
        (K, M, d) float32, prototype candidates; None where prototypes are not used.
    selected
        (n, K) bool, the candidates selected for each spot.
    tokens
        (n, M, g * g, t) float32, the grid of tokens of each spot in row-major order, read as embeddings
        are; None where the head does not need them.
    library
        (n,) float64, counts of each spot over all genes; None where they are not known.
    others
        The slide as further encoders see it, with the same spots and the same that are valid: embeddings,
        candidates and tokens alone. Heads get one encoder's, see `by_encoder`.
    """

    name: str
    patient: str | None
    ids: tuple[str, ...]
    xy: NDArray[np.float64]
    embedding: Embeddings
    valid: NDArray[np.bool_]
    target: Targets | None = None
    centre: NDArray[np.float32] | None = None
    selected: NDArray[np.bool_] | None = None
    tokens: Embeddings | None = None
    library: NDArray[np.float64] | None = None
    others: tuple[HeadSlide, ...] = ()

    genes_lacking = old_attribute("genes_lacking", "missing_genes")
    standard = old_attribute("standard", "scaler")
    token_standard = old_attribute("token_standard", "token_scaler")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> Targets:
        """The targets; only for a slide that has them."""
        assert self.target is not None
        return self.target

    @property
    def grids(self) -> Embeddings:
        """The tokens; only for a slide that has them."""
        assert self.tokens is not None
        return self.tokens

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(n,) bool, spots to train on and to score: a valid embedding and at least one defined target."""
        if self.target is None:
            return np.zeros(len(self), np.bool_)
        return self.valid & self.target.measured

    @property
    def missing_genes(self) -> int:
        """Number of genes of the panel that the slide does not have."""
        if self.target is None or not self.usable.any():
            return 0
        return int((~self.target.present).sum())

    @cached_property
    def scaler(self) -> EmbeddingScaler:
        """Standardises its embeddings by those of its valid spots; read from the store once."""
        return fit_scaler(self.embedding, self.valid)

    def standardised(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(k, M, d) float32 embeddings of some spots, standardised within the slide; 0 where not valid."""
        values = self.scaler.transform(self.embedding[rows])
        values[~self.valid[rows]] = 0.0
        return values

    @cached_property
    def token_scaler(self) -> EmbeddingScaler:
        """Standardises its tokens, each place of the grid separately; read from the store once."""
        return fit_scaler(self.grids, self.valid)

    def standardised_tokens(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(k, M, g * g, t) float32 tokens of some valid spots, standardised within the slide."""
        return self.token_scaler.transform(self.grids[rows])

    @cached_property
    def by_magnification(self) -> tuple[HeadSlide, ...]:
        """The slide at each of its M magnifications alone, without candidates; made once."""
        return tuple(
            replace(
                self,
                embedding=_at(self.embedding, number),
                centre=None,
                selected=None,
                tokens=None if self.tokens is None else _at(self.tokens, number),
                others=(),
            )
            for number in range(self.embedding.shape[1])
        )

    @property
    def by_encoder(self) -> tuple[HeadSlide, ...]:
        """The slide as each encoder alone sees it, with its targets; made once."""
        # One that remembered itself would stay in memory, embeddings and all, until garbage is looked for.
        return self._by_encoder if self.others else (self,)

    @cached_property
    def _by_encoder(self) -> tuple[HeadSlide, ...]:
        others = (replace(other, target=self.target, library=self.library) for other in self.others)
        return replace(self, others=()), *others

    def rows(self, keep: NDArray[np.bool_]) -> HeadSlide:
        """Return the slide with the spots of this mask (n,) only; its candidates stay."""
        kept = np.flatnonzero(keep)
        return replace(
            self,
            ids=tuple(self.ids[row] for row in kept),
            xy=self.xy[keep],
            embedding=_subset(self.embedding, kept),
            valid=self.valid[keep],
            target=None if self.target is None else self.target.rows(keep),
            selected=None if self.selected is None else self.selected[keep],
            tokens=None if self.tokens is None else _subset(self.tokens, kept),
            library=None if self.library is None else self.library[keep],
            others=tuple(other.rows(keep) for other in self.others),
        )


def _subset(embedding: Embeddings, rows: NDArray[np.int64]) -> Embeddings:
    return embedding.subset(rows) if isinstance(embedding, StoredRows | CachedRows) else embedding[rows]


def _at(embedding: Embeddings, magnification: int) -> Embeddings:
    if isinstance(embedding, StoredRows | CachedRows):
        return embedding.at(magnification)
    return embedding[:][:, magnification : magnification + 1]


def subsample_rows(slides: Sequence[HeadSlide], limit: int) -> list[NDArray[np.int64]]:
    """Usable spots of each slide: all of them, or every n-th where all slides have more than `limit`."""
    step = -(-sum(int(slide.usable.sum()) for slide in slides) // limit)
    return [np.flatnonzero(slide.usable)[:: max(1, step)] for slide in slides]
