"""Encoders: frozen image models with their exact preprocessing and pooling."""

from mmap_st.extract.encoders.build import build_encoder
from mmap_st.extract.encoders.catalogue import encoder_spec
from mmap_st.extract.encoders.encoder import Encoder
from mmap_st.extract.encoders.families import ENCODERS
from mmap_st.extract.encoders.spec import (
    PRECISIONS,
    CustomModel,
    EncoderSpec,
    Pooling,
    Preprocessing,
    TimmModel,
)

__all__ = [
    "ENCODERS",
    "PRECISIONS",
    "CustomModel",
    "Encoder",
    "EncoderSpec",
    "Pooling",
    "Preprocessing",
    "TimmModel",
    "build_encoder",
    "encoder_spec",
]
