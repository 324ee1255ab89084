__version__: str

__all__ = [
    "FeatureStore",
    "build_encoder",
    "compare",
    "embed",
    "encoders",
    "evaluate",
    "export",
    "fit_head",
    "heads",
    "list_encoders",
    "load_head",
    "merge_stores",
    "pack_store",
    "pl",
    "predict",
    "read_cohort",
    "settings_of",
    "tidy_store",
    "view",
    "write_report",
]

from . import encoders, heads, pl
from .extract.store import FeatureStore
from .head import settings_of
from .workflows import (
    build_encoder,
    compare,
    embed,
    evaluate,
    export,
    fit_head,
    list_encoders,
    load_head,
    merge_stores,
    pack_store,
    predict,
    read_cohort,
    tidy_store,
    view,
    write_report,
)
