__all__ = [
    "ENCODERS",
    "PRECISIONS",
    "CustomModel",
    "Encoder",
    "EncoderSpec",
    "Finding",
    "ListedEncoder",
    "Pooling",
    "Preprocessing",
    "TimmModel",
    "auto_precision",
    "build_encoder",
    "configuration_path",
    "device_of",
    "encoder_spec",
    "examine_encoder",
    "installed_encoders",
    "is_fast_at_bf16",
    "known_encoders",
    "listed_encoders",
    "look_at",
    "note_of_scales",
    "read_configuration",
    "register",
]

from .build import build_encoder, device_of
from .catalogue import ListedEncoder, encoder_spec, known_encoders, listed_encoders, look_at
from .encoder import Encoder, auto_precision, is_fast_at_bf16, note_of_scales
from .families import ENCODERS
from .plugins import installed_encoders, register
from .self_test import Finding, examine_encoder
from .spec import PRECISIONS, CustomModel, EncoderSpec, Pooling, Preprocessing, TimmModel
from .weights import configuration_path, read_configuration
