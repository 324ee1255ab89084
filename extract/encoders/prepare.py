"""Pictures of any size, fed to an encoder as its authors feed them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import RequestError
from mmap_st.extract.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    from PIL.Image import Image


def prepare_picture(picture: Image, spec: EncoderSpec) -> NDArray[np.uint8]:
    """Resize and crop a picture by the encoder's rule; the encoder itself normalises what comes out.

    Windows of slides need none of this: they are cut at the size and scale that the rule leads to.

    Parameters
    ----------
    picture
        RGB, of any size.

    Returns
    -------
    (input_px, input_px, 3) uint8, as `Encoder.embed` takes it.

    Raises
    ------
    RequestError
        If the rule leads to another size: it crops nothing and the picture is not square, or resizes nothing.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    rule = spec.preprocessing
    image = picture.convert("RGB")
    if rule.resize is not None:
        size = [rule.resize, rule.resize] if rule.exact else [rule.resize]
        image = resize(image, size, InterpolationMode(rule.interpolation))
    if rule.crop is not None:
        image = center_crop(image, [rule.crop, rule.crop])
    if image.size != (spec.input_px, spec.input_px):
        raise RequestError(
            f"A picture of {picture.width} x {picture.height} px becomes {image.width} x {image.height} px by"
            f" {spec.name}'s rule ({rule}), not {spec.input_px} px square; give a square one."
        )
    return np.array(image)
