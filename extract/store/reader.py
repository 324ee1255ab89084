"""The feature store, read side: slides, encoders and magnifications in Zarr (format version 1)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

import zarr

from mmap_st.errors import (
    DamagedSlideError,
    HeadError,
    StoreError,
    counted,
    did_you_mean,
    first_line,
    printable,
)
from mmap_st.extract.store.nodes import (
    described,
    folder_of,
    mend,
    opened_root,
    subgroup,
    text,
    wrong_attribute,
)
from mmap_st.extract.store.recipe import (
    Recipe,
    differences,
    encode_name,
    head_part,
)
from mmap_st.extract.store.storage import (
    StoreBucket,
    StoreFolder,
    StoreZip,
    drafts_in,
    is_draft,
    is_store,
    opened_place,
    refuse_read_only,
    refuse_web,
)
from mmap_st.extract.store.stored_slide import StoredSlide, stored_slide_in
from mmap_st.extract.windows import mpp_key
from mmap_st.files import disk_advice, file_lock, is_archive
from mmap_st.object_stores import Bucket
from mmap_st.urls import Place, Url, place_of

_LOG = logging.getLogger(__name__)
FORMAT = "mmap-features"
FORMAT_VERSION = 1
# Of a large store, what is shown of it is not looked for on every slide.
_SHOWN_SLIDES = 50


class FeatureStore:
    """An open feature store: the embeddings of the spots of all slides.

    Parameters
    ----------
    path
        Folder of the store, the file that it is packed into, or its URL in an object store.
    writable
        Whether groups may be written to; only those of a folder may.

    Attributes
    ----------
    path
        Folder of the store, its file, or its URL.
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

    def __init__(self, path: str | Path | Url, *, writable: bool = False) -> None:
        path = place_of(path)
        refuse_web(path)
        if (isinstance(path, Url) or not is_archive(path)) and not is_store(path):
            if is_nonempty(path):
                raise StoreError(f"{path} exists and is not a feature store; name another place.")
            raise StoreError(f"{path} is not a feature store; `mmap extract` makes one.")
        if writable:
            refuse_read_only(path)
        with store_errors(path):
            place = opened_place(path, writable=writable)
            root = opened_root(place)
        if root is None:
            raise StoreError(f"{path} is a Zarr array, not a feature store; name another store.")
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
    def open(cls, path: str | Path | Url, *, writable: bool = False) -> FeatureStore:
        """Open an existing store: the same as ``FeatureStore(path)``."""
        return cls(path, writable=writable)

    @property
    def packed(self) -> bool:
        """Whether it is one file, which can be read and not written to."""
        return isinstance(folder_of(self.root), StoreZip)

    @property
    def folder(self) -> Path:
        """Its folder, for who writes to it.

        Raises
        ------
        RequestError
            If it is packed, or in an object store.
        """
        refuse_read_only(self.path)
        assert isinstance(self.path, Path)
        return self.path

    @property
    def read_only(self) -> bool:
        """Whether nothing can be added in place: it is packed, or in an object store."""
        return not isinstance(folder_of(self.root), StoreFolder)

    def refresh(self, slide: str | None = None) -> None:
        """See what others wrote of a slide, or of all, since it was opened; of a folder it is always seen."""
        place = folder_of(self.root)
        if isinstance(place, StoreBucket):
            place.forget("" if slide is None else encode_name(slide))

    @property
    def slides(self) -> tuple[str, ...]:
        """Names of the slides, sorted; also of those that are damaged, which `slide` refuses."""
        found = (_name_in(self.root, key) for key in folder_of(self.root).folders_in(""))
        return tuple(sorted(name for name in found if name is not None))

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
        shown = list(islice(undamaged_slides(self), _SHOWN_SLIDES))
        slides_with: dict[str, Counter[float]] = {}
        for slide in shown:
            for encoder in slide.encoders():
                complete = [m.mpp for m in slide.undamaged(encoder) if m.complete]
                slides_with.setdefault(encoder, Counter()).update(complete)
        part = f" (encoders of the first {len(shown)})" if len(shown) < len(names) else ""
        lines = [f"FeatureStore {self.path}: {counted(len(names), 'slide')}{part}"]
        for encoder, counts in sorted(slides_with.items()):
            # A magnification that not every slide has says on how many it is complete.
            parts = [
                f"{m:g}" + ("" if n == len(shown) else f" ({counted(n, 'slide')})")
                for m, n in sorted(counts.items())
            ]
            lines.append(
                f"  {encoder}: {', '.join(parts)} um/px" if parts else f"  {encoder}: nothing complete"
            )
        return "\n".join(map(printable, lines))

    @classmethod
    def create(cls, path: Path) -> FeatureStore:
        """Open a store in a folder for writing; make it where there is none."""
        refuse_read_only(path)
        if is_nonempty(path):
            return cls.open(path, writable=True)
        with store_errors(path), _making(path):
            if (path / "zarr.json").is_file():
                return cls.open(path, writable=True)  # another process was first
            for leftover in drafts_in(path):
                leftover.unlink(missing_ok=True)  # of a process that was killed here
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
        if group is None or ("name" not in group.attrs and _name_in(self.root, encode_name(name)) is None):
            raise StoreError(
                f"{self.path} has no slide {name}{did_you_mean(name, self.slides)}; `mmap extract` adds it."
            )
        if text(group, "name") != name:
            raise wrong_attribute(group, "name")
        return stored_slide_in(group)

    def require_group(self, slide: str, *keys: str) -> zarr.Group:
        """The group of a slide, or one within it, for writing; made where there is none.

        The slide's folder is opened as a hierarchy of its own. From the root, zarr would draft a `zarr.json`
        of the root each time it makes something below, and a kill would leave that draft where nobody may
        clear it away, since it could be that of another slide's writer.
        """
        key = encode_name(slide)
        StoreFolder(self.folder).check(key)
        folder = StoreFolder(self.folder / key)
        for count in range(len(keys) + 1):
            mend(folder, "/".join(keys[:count]))
        group = zarr.open_group(folder, mode="a", zarr_format=3)
        return group.require_group("/".join(keys)) if keys else group

    def has_slide(self, name: str) -> bool:
        """Whether the store has this slide."""
        return _name_in(self.root, encode_name(name)) is not None


def _name_in(root: zarr.Group, key: str) -> str | None:
    """Name of the slide in a folder of the store; None while there is none."""
    try:
        node = described(root, key)
        if node is None or node["node_type"] != "group":
            return None
        name = node.get("attributes", {}).get("name")
        if name is None and not folder_of(root).folders_in(key):
            return None  # it is being made
    except StoreError:
        name = None
    # Where that is damaged, the folder's own name tells.
    return name if isinstance(name, str) and encode_name(name) == key else unquote(key)


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
                f"No magnification of {encoder} is complete on all of {counted(len(slides), 'slide')}; `mmap"
                " info` shows what the store has."
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


def undamaged_slide(store: FeatureStore, name: str) -> StoredSlide | None:
    """A slide of a store; None where there is none, or it is damaged as a whole, which is logged."""
    if not store.has_slide(name):
        return None
    try:
        slide = store.slide(name)
        slide.has_spots()
    except DamagedSlideError as error:
        _LOG.warning("slide %s: %s", printable(name), error)
        return None
    return slide


def undamaged_slides(store: FeatureStore) -> Iterator[StoredSlide]:
    """Slides of a store, without those that are damaged: whoever uses one of these learns why not."""
    for name in store.slides:
        try:
            slide = store.slide(name)
            slide.encoders()
        except StoreError as error:
            _LOG.info("slide %s: %s", printable(name), error)
        else:
            yield slide


def note_unsealed(store: FeatureStore, names: Sequence[str], encoder: str) -> None:
    """Log, once, on how many of some undamaged slides nothing can tell whether embeddings are as written."""
    try:
        unsealed = [name for name in names if not store.slide(name).sealed(encoder)]
    except StoreError:
        return  # it was removed meanwhile, and whoever uses it says so
    if unsealed:
        _LOG.warning(
            "%s has no check sums of %s on %d of %s; `mmap info %s --verify --seal` adds them",
            printable(str(store.path)),
            printable(encoder),
            len(unsealed),
            counted(len(names), "slide"),
            printable(str(store.path)),
        )


def check_encoder(store: FeatureStore, encoder: str) -> None:
    """Refuse an encoder that no slide of a store has.

    Raises
    ------
    StoreError
        Naming the encoders that are there.
    """
    known = sorted({name for slide in undamaged_slides(store) for name in slide.encoders()})
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


def is_nonempty(path: Place) -> bool:
    """Whether a place is anything but free: a file, a folder that is not empty, a URL with objects below."""
    if isinstance(path, Url):
        return is_store(path) or next(Bucket(path).keys(), None) is not None
    # What a process left that was killed while it made the store is nothing.
    return path.exists() and (not path.is_dir() or any(not is_draft(inner) for inner in path.iterdir()))


def locks_folder(path: Path) -> Path:
    """Where the locks of a store are: next to it, so that it holds nothing but Zarr."""
    path = path.resolve()
    return path.with_name(path.name + ".locks")


#: The lock of making a store, beside those of its slides: no slide's folder has a space in its name.
MAKING = "new store.lock"


@contextmanager
def _making(path: Path) -> Iterator[None]:
    """Hold the lock of making a store: jobs that start together make it once."""
    folder = locks_folder(path)
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / MAKING, wait_s=None):
        yield


@contextmanager
def store_errors(path: Place) -> Iterator[None]:
    """Turn what a disk says into one sentence."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"The store {path} failed ({error.strerror or first_line(error)});"
            f" {disk_advice(error, 'use another place')}, and run the same command again; what is finished is"
            " saved."
        ) from error
