"""One slide of a feature store: its spots, its embeddings by every encoder, and both as a table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import zarr
from numpy.typing import NDArray

from mmap_st.errors import DamagedSlideError, StoreError, counted, did_you_mean, printable
from mmap_st.extract.store.integrity import damaged, has_digests
from mmap_st.extract.store.magnification import Magnification, embeddings_as_anndata, magnification_in
from mmap_st.extract.store.nodes import (
    numbers,
    positive,
    read_array,
    shape_in,
    subgroup,
    subgroups,
    text,
    wrong_attribute,
)
from mmap_st.extract.store.recipe import encode_name
from mmap_st.extract.windows import canonical_mpp, mpp_key
from mmap_st.files import sha256_of_json

if TYPE_CHECKING:
    import anndata


_LOG = logging.getLogger(__name__)
#: The arrays of a slide's spots.
SPOT_ARRAYS = ("id", "xy")


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

    @property
    def attributes(self) -> dict[str, object]:
        """As the store writes them."""
        return {
            "name": self.name,
            "patient": self.patient,
            "image": self.image,
            "size_px": list(self.size_px) if self.size_px else None,
            "source_mpp": self.source_mpp,
            "source_mpp_from": self.source_mpp_from,
        }

    @property
    def sha256(self) -> str:
        """Of the attributes, written beside them: another patient would be another split."""
        return sha256_of_json(self.attributes)


@dataclass(frozen=True, repr=False)
class StoredSlide(SlideInfo):
    """One slide of a store, with the Zarr group that holds it.

    Examples
    --------
    >>> slide = store["A1"]
    >>> slide.embedding("efficientnet-lite0", mpp=0.5).shape == (len(slide), 1280)
    True
    >>> slide.to_anndata("efficientnet-lite0", mpp=[0.5, 1.0]).n_vars
    2560
    """

    group: zarr.Group

    def __len__(self) -> int:
        return shape_in(self._spots(), "id")[0]

    def __repr__(self) -> str:
        spots = counted(len(self), "spot") if self.has_spots() else "no spots yet"
        found = [f"{name} at {_mpps(self.complete(name)) or 'no'} um/px" for name in self.encoders()]
        return printable(f"StoredSlide {self.name}: {spots}; {'; '.join(found) or 'no embeddings'}")

    def spot_ids(self) -> tuple[str, ...]:
        """(n,) ids."""
        return tuple(str(name) for name in read_array(self._spots(), "id"))

    def spot_xy(self) -> NDArray[np.float64]:
        """(n, 2) centres in level-0 pixels."""
        return read_array(self._spots(), "xy").astype(np.float64, copy=False)

    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders that have something here."""
        return tuple(str(text(group, "name")) for group in self._encoder_groups())

    def magnifications(self, encoder: str) -> tuple[Magnification, ...]:
        """What the store has of an encoder, finest first, complete or not.

        Raises
        ------
        StoreError
            If one of them is damaged.
        """
        return tuple(self._magnifications(encoder, skip=False))

    def undamaged_encoders(self) -> tuple[str, ...]:
        """Names of the encoders that have something here, without those whose description is damaged."""
        groups = self._encoder_groups(on_damage=self._log)
        return tuple(group.attrs["name"] for group in groups if isinstance(group.attrs.get("name"), str))  # type: ignore[misc]

    def undamaged(self, encoder: str) -> tuple[Magnification, ...]:
        """The same, without those whose description is damaged, which are logged."""
        return tuple(self._magnifications(encoder, skip=True))

    def _magnifications(self, encoder: str, *, skip: bool) -> list[Magnification]:
        found = []
        try:
            group = self.encoder_group(encoder)
        except StoreError as error:
            if not skip:
                raise
            self._log(error)
            return []
        inside = subgroups(group, self._log if skip else None) if group is not None else []
        rows = cache(lambda: len(self))
        for inner in inside:
            if "recipe" not in inner.attrs and not has_digests(inner):
                continue  # it is being made, or prototypes
            try:
                found.append(_of_spots(magnification_in(inner), rows))
            except StoreError as error:
                if not skip:
                    raise
                self._log(error)
        return sorted(found, key=lambda m: m.mpp)

    def _log(self, error: StoreError) -> None:
        said = error.found if isinstance(error, DamagedSlideError) else str(error)
        _LOG.warning("slide %s: %s", printable(self.name), printable(said))

    def telemetry(self, encoder: str) -> Mapping[str, object]:
        """What the last run that embedded it measured of itself, see `Telemetry.summary`; empty: nothing."""
        try:
            group = self.encoder_group(encoder)
        except StoreError:
            return {}
        found = None if group is None else group.attrs.get("telemetry")
        return found if isinstance(found, dict) else {}

    def complete(self, encoder: str) -> dict[float, Magnification]:
        """The complete magnifications of an encoder, by mpp, finest first."""
        return {m.mpp: m for m in self.magnifications(encoder) if m.complete}

    def sealed(self, encoder: str) -> bool:
        """Whether all that is complete of an encoder has check sums; earlier versions wrote none."""
        return all(has_digests(magnification.group) for magnification in self.complete(encoder).values())

    def verify(self, encoder: str, mpps: Sequence[float] | None = None) -> None:
        """Read all that the store has of the spots, and of an encoder at some or all magnifications.

        Raises
        ------
        DamagedSlideError
            If something of it is not what was written.
        """
        self.spot_ids()
        self.spot_xy()
        for mpp, magnification in self.complete(encoder).items():
            if mpps is None or mpp in mpps:
                magnification.verify()

    def embedding(self, encoder: str, *, mpp: float | None = None) -> NDArray[np.float32]:
        """Embeddings of all spots by one encoder at one magnification.

        Parameters
        ----------
        encoder
            Name of an encoder in the store.
        mpp
            Micrometres per pixel of the windows, such as 0.5 for 20x. None: the only complete one.

        Returns
        -------
        (n, d) float32, rows in the order of `spot_ids`. Rows of windows that could not be read are NaN.

        Raises
        ------
        StoreError
            If the slide has no complete embeddings of this kind, or has several and `mpp` is None.
        """
        found = self.chosen(encoder, mpp)
        if len(found) > 1:
            at = _mpps(m.mpp for m in found)
            raise StoreError(f"slide {self.name} has {encoder} at {at} um/px; give one mpp.")
        return found[0].embedding()

    def to_anndata(
        self, encoder: str | None = None, *, mpp: float | Sequence[float] | None = None
    ) -> anndata.AnnData:
        """Embeddings as an AnnData object that scanpy works on.

        Parameters
        ----------
        encoder
            Name of an encoder in the store. None: the only one that the slide has.
        mpp
            Micrometres per pixel, one or several. None: all that are complete.

        Returns
        -------
        ``X`` (n, d) float32, the embeddings at each magnification next to each other, finest first; rows of
        windows that could not be read are NaN and False in ``obs["valid"]``. ``var["mpp"]`` names the
        magnification of each column, and ``obsm["spatial"]`` (n, 2) holds the centres of the spots in level-0
        pixels, x to the right and y down.

        Raises
        ------
        StoreError
            If the slide has no complete embeddings of this kind, or `encoder` is None and it has several.
        """
        name = self.only_encoder() if encoder is None else encoder
        chosen = self.chosen(name, mpp)
        return embeddings_as_anndata(self.name, self.spot_ids(), self.spot_xy(), name, chosen)

    def only_encoder(self) -> str:
        """Name of the one encoder that has something here.

        Raises
        ------
        StoreError
            If there are several, or none.
        """
        encoders = self.encoders()
        if len(encoders) != 1:
            there = f"embeddings of {', '.join(encoders)}; name one" if encoders else "no embeddings"
            raise StoreError(f"slide {self.name} has {there}.")
        return encoders[0]

    def chosen(self, encoder: str, mpp: float | Sequence[float] | None = None) -> list[Magnification]:
        """Complete magnifications of an encoder: those of `mpp`, or all; finest first, at least one.

        Raises
        ------
        StoreError
            If one of them is not complete, or there is none.
        """
        complete = self.complete(encoder)
        if not complete:
            near = did_you_mean(encoder, self.encoders())
            there = ", ".join(self.encoders()) or "none"
            raise StoreError(
                f"slide {self.name} has no complete embeddings of {encoder!r}{near}; encoders: {there}."
            )
        wanted = [mpp] if isinstance(mpp, float | int) else list(complete) if mpp is None else list(mpp)
        missing = [value for value in wanted if canonical_mpp(value) not in complete]
        if missing or not wanted:
            at = f" at {_mpps(missing)} um/px" if missing else ""
            raise StoreError(
                f"slide {self.name} has no complete embeddings of {encoder}{at}; there are {_mpps(complete)}."
            )
        return [complete[canonical_mpp(value)] for value in sorted(set(wanted))]

    def encoder_group(self, encoder: str) -> zarr.Group | None:
        """The group that holds an encoder's magnifications and prototypes."""
        return subgroup(self.group, encode_name(encoder))

    def _encoder_groups(self, on_damage: Callable[[StoreError], None] | None = None) -> list[zarr.Group]:
        groups = [group for group in subgroups(self.group, on_damage) if group.basename != "spots"]
        # One without a name is being made, unless something is in it: then its name is damaged.
        return [group for group in groups if "name" in group.attrs or subgroups(group, lambda error: None)]

    def has_spots(self) -> bool:
        """Whether its spots are written."""
        return self._complete_spots() is not None

    def _complete_spots(self) -> zarr.Group | None:
        spots = subgroup(self.group, "spots")
        if spots is not None and spots.attrs.get("complete") is True:
            return spots
        if self._encoder_groups():  # they are written after the spots
            raise damaged(self.group, "spots", "they are not complete, and were embedded")
        return None

    def spots_made_by(self) -> Mapping[str, object] | None:
        """How a grid of spots was placed; None where they are from a spot table."""
        made_by = self._spots().attrs.get("made_by")
        return dict(made_by) if isinstance(made_by, Mapping) else None

    def _spots(self) -> zarr.Group:
        spots = self._complete_spots()
        if spots is None:
            raise StoreError(f"slide {self.name} has no spots yet; run `mmap extract` on it again.")
        return spots


def _of_spots(magnification: Magnification, rows: Callable[[], int]) -> Magnification:
    """Refuse a magnification that is not of its slide's spots, which digests of arrays cannot tell."""
    if magnification.complete and magnification.whole:
        group, n = magnification.group, rows()
        for name, shape in magnification.shapes.items():
            if shape[:1] != (n,):
                raise damaged(group, name, f"it has shape {shape}, and the slide {counted(n, 'spot')}")
        mpp = magnification.recipe.get("mpp")
        if mpp is not None and (not isinstance(mpp, float | int) or mpp_key(mpp) != group.basename):
            raise damaged(group, "zarr.json", f"it is of {mpp} um/px")
    return magnification


def stored_slide_in(group: zarr.Group) -> StoredSlide:
    """The slide that a group holds.

    Raises
    ------
    StoreError
        If its attributes are not what was written.
    """
    size = group.attrs.get("size_px")
    if size is not None:
        if len(numbers(group, "size_px")) != 2 or 0 in numbers(group, "size_px"):
            raise wrong_attribute(group, "size_px")
        width, height = numbers(group, "size_px")
    slide = StoredSlide(
        name=str(text(group, "name")),
        patient=text(group, "patient", optional=True),
        image=text(group, "image", optional=True),
        size_px=None if size is None else (width, height),
        source_mpp=positive(group, "source_mpp"),
        source_mpp_from=text(group, "source_mpp_from", optional=True),
        group=group,
    )
    # Slides of earlier versions have none.
    if "sha256" in group.attrs and group.attrs["sha256"] != slide.sha256:
        raise damaged(group, "zarr.json", "its attributes are not those that were written")
    return slide


def _mpps(mpps: Iterable[float]) -> str:
    return ", ".join(f"{mpp:g}" for mpp in mpps)
