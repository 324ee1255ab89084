"""The feature store, read side: slides, encoders and magnifications in Zarr (format version 1)."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from mmap_st.errors import HeadError, StoreError, did_you_mean, first_line
from mmap_st.extract.store.magnification import Magnification, array_in, magnification_in, member_of
from mmap_st.extract.store.names import encode_name
from mmap_st.extract.store.recipe import Recipe, differences, head_part
from mmap_st.extract.windows import mpp_key
from mmap_st.files import file_lock

FORMAT = "mmap-features"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class SlideInfo:
    """What a store says of a slide.

    Attributes
    ----------
    name, patient, image
        As in the cohort; image is a file name.
    size_px
        Width and height of the image.
    source_mpp, source_mpp_from
        Its micrometres per pixel and where they are from.
    """

    name: str
    patient: str | None
    image: str | None
    size_px: tuple[int, int] | None
    source_mpp: float | None
    source_mpp_from: str | None


@dataclass(frozen=True)
class StoredSlide(SlideInfo):
    """One slide of a store, with the Zarr group that holds it."""

    group: zarr.Group

    def spot_ids(self) -> tuple[str, ...]:
        """(n,) ids."""
        return tuple(str(name) for name in np.asarray(array_in(self._spots(), "id")[:]))

    def spot_xy(self) -> NDArray[np.float64]:
        """(n, 2) centres in level-0 pixels."""
        return np.asarray(array_in(self._spots(), "xy")[:], dtype=np.float64)

    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders that have something here."""
        return tuple(str(group.attrs["name"]) for group in self._encoder_groups())

    def magnifications(self, encoder: str) -> tuple[Magnification, ...]:
        """What the store has of an encoder, finest first, complete or not."""
        group = self.encoder_group(encoder)
        found = []
        for key in _subgroup_names(group) if group is not None else ():
            inner = subgroup(group, key) if group is not None else None
            if inner is None or "recipe" not in inner.attrs:
                continue
            found.append(magnification_in(inner))
        return tuple(sorted(found, key=lambda m: m.mpp))

    def complete(self, encoder: str) -> dict[float, Magnification]:
        """The complete magnifications of an encoder, by mpp, finest first."""
        return {m.mpp: m for m in self.magnifications(encoder) if m.complete}

    def encoder_group(self, encoder: str) -> zarr.Group | None:
        """The group that holds an encoder's magnifications and prototypes."""
        return subgroup(self.group, encode_name(encoder))

    def _encoder_groups(self) -> list[zarr.Group]:
        groups = [subgroup(self.group, key) for key in _subgroup_names(self.group) if key != "spots"]
        return [group for group in groups if group is not None and "name" in group.attrs]

    def has_spots(self) -> bool:
        """Whether its spots are written."""
        spots = subgroup(self.group, "spots")
        return spots is not None and spots.attrs.get("complete") is True

    def spots_made_by(self) -> dict[str, Any] | None:
        """How a grid of spots was placed; None where they are from a spot table."""
        made_by = self._spots().attrs.get("made_by")
        return dict(made_by) if isinstance(made_by, Mapping) else None

    def _spots(self) -> zarr.Group:
        spots = subgroup(self.group, "spots")
        if spots is None or not self.has_spots():
            raise StoreError(f"slide {self.name} has no spots yet; run `mmap extract` on it again.")
        return spots


class FeatureStore:
    """An open feature store.

    Parameters
    ----------
    path
        Folder of the store.
    root
        Its Zarr group.
    """

    def __init__(self, path: Path, root: zarr.Group) -> None:
        self.path = path
        self.root = root

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> FeatureStore:
        """Open an existing store.

        Raises
        ------
        StoreError
            If there is none, or it is of a format that this version does not know.
        """
        if not (path / "zarr.json").is_file():
            if is_nonempty(path):
                raise StoreError(f"{path} exists and is not a feature store; name another place.")
            raise StoreError(f"{path} is not a feature store; `mmap extract` makes one.")
        with store_errors(path):
            root = zarr.open_group(path, mode="r+" if writable else "r")
        kind, version = root.attrs.get("format"), root.attrs.get("format_version")
        if kind != FORMAT:
            raise StoreError(f"{path} is a Zarr group of another kind (format {kind}); name another store.")
        if version != FORMAT_VERSION:
            raise StoreError(
                f"{path} has format version {version}; this program reads version {FORMAT_VERSION}."
            )
        return cls(path, root)

    @classmethod
    def create(cls, path: Path) -> FeatureStore:
        """Open a store for writing; make it where there is none."""
        if is_nonempty(path):
            return cls.open(path, writable=True)
        with store_errors(path), _making(path):
            if (path / "zarr.json").is_file():
                return cls.open(path, writable=True)  # another process was first
            for leftover in path.glob("*.partial"):
                leftover.unlink()  # of a process that was killed here
            zarr.open_group(
                path,
                mode="a",
                zarr_format=3,
                attributes={"format": FORMAT, "format_version": FORMAT_VERSION},
            )
        return cls.open(path, writable=True)

    def slides(self) -> tuple[str, ...]:
        """Names of the slides, sorted."""
        groups = (subgroup(self.root, key) for key in _subgroup_names(self.root))
        return tuple(sorted(str(g.attrs["name"]) for g in groups if g is not None and "name" in g.attrs))

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
                f"{self.path} has no slide {name}{did_you_mean(name, self.slides())}; `mmap extract` adds it."
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
        group = zarr.open_group(self.path / encode_name(slide), mode="a", zarr_format=3)
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
    known = sorted({name for slide in store.slides() for name in store.slide(slide).encoders()})
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
                    f"slide {slide.name} was embedded otherwise than {slides[0].name}"
                    f" ({'; '.join(different)}); extract them alike."
                )
    assert first is not None
    return first


def is_nonempty(path: Path) -> bool:
    """Whether a path is anything but free: a file, or a folder that is not empty."""
    # What a process left that was killed while it made the store is nothing.
    return path.exists() and (
        not path.is_dir() or any(not inner.name.endswith(".partial") for inner in path.iterdir())
    )


def subgroup(group: zarr.Group, key: str) -> zarr.Group | None:
    """A member that is a group, or None."""
    found = member_of(group, key)
    return found if isinstance(found, zarr.Group) else None


def _subgroup_names(group: zarr.Group) -> list[str]:
    """Names of the members that are groups, sorted."""
    try:
        return sorted(group.group_keys())
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # by what is damaged
        raise StoreError(
            f"Something in {group.store_path} is damaged ({type(error).__name__}: {first_line(error)});"
            " restore the store from a copy."
        ) from error


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
