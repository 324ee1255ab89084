"""The feature store, read side: slides, encoders and magnifications in Zarr (format version 1)."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from mmap_st.errors import HeadError, StoreError, did_you_mean
from mmap_st.extract.store.folder import StoreFolder, drafts_in, is_draft
from mmap_st.extract.store.magnification import Magnification
from mmap_st.extract.store.recipe import (
    RANDOM,
    Recipe,
    differences,
    encode_name,
    enlargement,
    head_part,
    is_imported,
    matched_by,
)
from mmap_st.extract.store.stored_slide import StoredSlide, subgroup, subgroup_names
from mmap_st.extract.windows import mpp_key
from mmap_st.files import file_lock

FORMAT = "mmap-features"
FORMAT_VERSION = 1
# Of a large store, what is shown of it is not looked for on every slide.
_SHOWN_SLIDES = 50


class FeatureStore:
    """An open feature store: the embeddings of the spots of all slides.

    Parameters
    ----------
    path
        Folder of the store.
    writable
        Whether groups may be written to.

    Attributes
    ----------
    path
        Folder of the store.
    root
        Its Zarr group.

    Raises
    ------
    StoreError
        If there is no store at `path`, or it is of a format that this version does not know.

    Examples
    --------
    >>> store = mm.FeatureStore(store_path)
    >>> store.slides
    ('A1', 'B1', 'C1')
    >>> "A1" in store, len(store)
    (True, 3)
    >>> store["A1"].embedding("efficientnet-lite0", mpp=0.5).dtype
    dtype('float32')
    """

    def __init__(self, path: str | Path, *, writable: bool = False) -> None:
        path = Path(path)
        if not (path / "zarr.json").is_file():
            if is_nonempty(path):
                raise StoreError(f"{path} exists and is not a feature store; name another place.")
            raise StoreError(f"{path} is not a feature store; `mmap extract` makes one.")
        with store_errors(path):
            root = zarr.open_group(StoreFolder(path, read_only=not writable), mode="r+" if writable else "r")
        kind, version = root.attrs.get("format"), root.attrs.get("format_version")
        if kind != FORMAT:
            raise StoreError(f"{path} is a Zarr group of another kind (format {kind}); name another store.")
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{path} has format version {version}; this program reads version {FORMAT_VERSION}."
            )
        self.path = path
        self.root = root

    @classmethod
    def open(cls, path: str | Path, *, writable: bool = False) -> FeatureStore:
        """Open an existing store: the same as ``FeatureStore(path)``."""
        return cls(path, writable=writable)

    @property
    def slides(self) -> tuple[str, ...]:
        """Names of the slides, sorted."""
        groups = (subgroup(self.root, key) for key in subgroup_names(self.root))
        return tuple(sorted(str(g.attrs["name"]) for g in groups if g is not None and "name" in g.attrs))

    def __len__(self) -> int:
        return len(self.slides)

    def __iter__(self) -> Iterator[str]:
        return iter(self.slides)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.has_slide(name)

    def __getitem__(self, name: str) -> StoredSlide:
        return self.slide(name)

    def __repr__(self) -> str:
        names = self.slides
        shown = [self.slide(name) for name in names[:_SHOWN_SLIDES]]
        slides_with: dict[str, Counter[float]] = {}
        for slide in shown:
            for encoder in slide.encoders():
                slides_with.setdefault(encoder, Counter()).update(list(slide.complete(encoder)))
        part = f" (encoders of the first {len(shown)})" if len(shown) < len(names) else ""
        lines = [f"FeatureStore {self.path}: {len(names)} slide{'' if len(names) == 1 else 's'}{part}"]
        for encoder, counts in sorted(slides_with.items()):
            # A magnification that not every slide has says on how many it is complete.
            parts = [
                f"{m:g}" + ("" if n == len(shown) else f" ({n} slides)") for m, n in sorted(counts.items())
            ]
            lines.append(
                f"  {encoder}: {', '.join(parts)} um/px" if parts else f"  {encoder}: nothing complete"
            )
        return "\n".join(lines)

    @classmethod
    def create(cls, path: Path) -> FeatureStore:
        """Open a store for writing; make it where there is none."""
        if is_nonempty(path):
            return cls.open(path, writable=True)
        with store_errors(path), _making(path):
            if (path / "zarr.json").is_file():
                return cls.open(path, writable=True)  # another process was first
            for leftover in drafts_in(path):
                leftover.unlink()  # of a process that was killed here
            zarr.open_group(
                StoreFolder(path),
                mode="a",
                zarr_format=3,
                attributes={"format": FORMAT, "format_version": FORMAT_VERSION},
            )
        return cls.open(path, writable=True)

    def slide(self, name: str) -> StoredSlide:
        """One slide of the store.

        Raises
        ------
        StoreError
            If the store does not have it.
        """
        group = subgroup(self.root, encode_name(name))
        if group is None or "name" not in group.attrs:
            raise StoreError(
                f"{self.path} has no slide {name}{did_you_mean(name, self.slides)}; `mmap extract` adds it."
            )
        attrs: dict[str, Any] = dict(group.attrs)
        size = attrs.get("size_px")
        return StoredSlide(
            name=attrs["name"],
            patient=attrs.get("patient"),
            image=attrs.get("image"),
            size_px=(int(size[0]), int(size[1])) if size else None,
            source_mpp=attrs.get("source_mpp"),
            source_mpp_from=attrs.get("source_mpp_from"),
            group=group,
        )

    def require_group(self, slide: str, *keys: str) -> zarr.Group:
        """The group of a slide, or one within it, for writing; made where there is none.

        The slide's folder is opened as a hierarchy of its own. From the root, zarr would draft a `zarr.json`
        of the root each time it makes something below, and a kill would leave that draft where nobody may
        clear it away, since it could be that of another slide's writer.
        """
        key = encode_name(slide)
        StoreFolder(self.path).check(key)
        group = zarr.open_group(StoreFolder(self.path / key), mode="a", zarr_format=3)
        return group.require_group("/".join(keys)) if keys else group

    def has_slide(self, name: str) -> bool:
        """Whether the store has this slide."""
        group = subgroup(self.root, encode_name(name))
        return group is not None and "name" in group.attrs


def common_magnifications(
    slides: Sequence[StoredSlide], encoder: str, wanted: Sequence[float] | None
) -> tuple[float, ...]:
    """Magnifications to use: those wanted, or all that are complete on every slide; finest first.

    Raises
    ------
    StoreError
        If a wanted one is not complete everywhere, or none is.
    """
    complete = [set(slide.complete(encoder)) for slide in slides]
    shared = set.intersection(*complete) if complete else set()
    if wanted is None:
        if not shared:
            raise StoreError(
                f"No magnification of {encoder} is complete on all of {len(slides)} slides;"
                " `mmap info` shows what the store has."
            )
        return tuple(sorted(shared))
    for mpp in wanted:
        lacking = [s.name for s, mpps in zip(slides, complete, strict=True) if mpp not in mpps]
        if lacking:
            raise StoreError(
                f"{encoder} at {mpp_key(mpp)} um/px is not complete on {', '.join(lacking[:5])};"
                " run `mmap extract` for it, or choose other magnifications."
            )
    return tuple(sorted(wanted))


def check_encoder(store: FeatureStore, encoder: str) -> None:
    """Refuse an encoder that no slide of a store has.

    Raises
    ------
    StoreError
        Naming the encoders that are there.
    """
    known = sorted({name for slide in store.slides for name in store.slide(slide).encoders()})
    if encoder not in known:
        there = f"it has {', '.join(known)}" if known else "it has none yet"
        raise StoreError(
            f"{store.path} has no embeddings of {encoder!r}{did_you_mean(encoder, known)}; {there}."
        )


def check_same_recipe(slides: Sequence[StoredSlide], encoder: str, mpps: Sequence[float]) -> Recipe:
    """The encoder part of the recipe that these slides share, to be recorded with a head.

    Raises
    ------
    HeadError
        If two slides were embedded by different encoders or weights.
    """
    first: Recipe | None = None
    for slide in slides:
        stored = slide.complete(encoder)
        for mpp in mpps:
            part = head_part(stored[mpp].recipe)
            if first is None:
                first = part
            different = differences(first, part)
            if different:
                raise HeadError(
                    f"slide {slide.name} was embedded with other settings than {slides[0].name}"
                    f" ({'; '.join(different)}); extract both with the same settings."
                )
    assert first is not None
    return first


def is_nonempty(path: Path) -> bool:
    """Whether a path is anything but free: a file, or a folder that is not empty."""
    # What a process left that was killed while it made the store is nothing.
    return path.exists() and (not path.is_dir() or any(not is_draft(inner) for inner in path.iterdir()))


def locks_folder(path: Path) -> Path:
    """Where the locks of a store are: next to it, so that it holds nothing but Zarr."""
    path = path.resolve()
    return path.with_name(path.name + ".locks")


@contextmanager
def _making(path: Path) -> Iterator[None]:
    """Hold the lock of making a store: jobs that start together make it once."""
    folder = locks_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / "new.lock", wait_s=None):
        yield


@contextmanager
def store_errors(path: Path) -> Iterator[None]:
    """Turn what a disk says into one sentence."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "free some space and run the same command again; what is finished is saved",
            errno.EROFS: "choose a place that can be written to",
            errno.EACCES: "choose a place that you may write to",
        }.get(error.errno or 0, "check the disk and run the same command again; what is finished is saved")
        raise StoreError(f"The store {path} failed ({error.strerror or error}); {advice}.") from error


@dataclass(frozen=True)
class ContentLine:
    """One magnification of one encoder of one slide; a slide without any has one line."""

    slide: str
    patient: str | None
    spots: int
    source_mpp: float | None
    source_mpp_from: str | None
    state: str
    encoder: str | None = None
    mpp: str | None = None
    invalid: int = 0
    prototypes: int = 0


def list_contents(store: FeatureStore) -> Iterator[ContentLine]:
    """List a store, slides and encoders in order of name, finest magnification first."""
    for name in store.slides:
        slide = store.slide(name)
        spots = len(slide.spot_ids()) if slide.has_spots() else 0
        shared = (name, slide.patient, spots, slide.source_mpp, slide.source_mpp_from)
        encoders = slide.encoders()
        if not encoders:
            yield ContentLine(*shared, state="no embeddings")
        for encoder in encoders:
            for magnification in slide.magnifications(encoder):
                state = _state(magnification)
                if str(magnification.recipe["weights_sha256"]).startswith(RANDOM):
                    state += ", random weights"
                if magnification.whole and magnification.tokens:
                    state += f", {magnification.tokens} x {magnification.tokens} tokens"
                if is_imported(magnification.recipe):
                    state += f", imported {matched_by(magnification.recipe)}"
                if (times := enlargement(magnification.recipe)) is not None:
                    state += f", enlarged {times:.2g} times"
                yield ContentLine(
                    *shared,
                    state=state,
                    encoder=encoder,
                    mpp=mpp_key(magnification.mpp),
                    invalid=int((~magnification.valid()).sum()) if state.startswith("complete") else 0,
                    prototypes=_prototype_sets(slide, encoder),
                )


def _state(magnification: Magnification) -> str:
    if not magnification.whole:
        return "unfinished, its arrays are missing"
    if magnification.complete:
        return "complete"
    return f"unfinished, {magnification.chunks_done} of {magnification.n_chunks} chunks"


def _prototype_sets(slide: StoredSlide, encoder: str) -> int:
    group = slide.encoder_group(encoder)
    sets = subgroup(group, "prototypes") if group is not None else None
    return 0 if sets is None else len(list(sets.group_keys()))
