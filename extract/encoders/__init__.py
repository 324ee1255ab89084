"""Encoders: frozen image models with their exact preprocessing and pooling."""

from mmap_st.extract.encoders.build import build_encoder
from mmap_st.extract.encoders.registry import ENCODERS, encoder_spec
from mmap_st.extract.encoders.spec import PRECISIONS, Encoder, EncoderSpec

__all__ = ["ENCODERS", "PRECISIONS", "Encoder", "EncoderSpec", "build_encoder", "encoder_spec"]
