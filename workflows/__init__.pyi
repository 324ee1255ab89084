__all__ = [
    "SETTINGS",
    "Comparison",
    "Display",
    "EmbeddedStore",
    "Evaluation",
    "HeadRun",
    "NothingEmbeddedError",
    "build_encoder",
    "card_or_store",
    "check_store_out",
    "compare",
    "embed",
    "embedding_status",
    "encoder_name",
    "evaluate",
    "export",
    "fit_head",
    "list_encoders",
    "load_head",
    "merge_stores",
    "pack_head",
    "pack_store",
    "predict",
    "read_cohort",
    "run_demo",
    "show_progress",
    "survey_and_fill",
    "tidy_store",
    "view",
    "write_report",
]

from .arguments import check_store_out, encoder_name, read_cohort
from .cards import card_or_store, pack_head
from .cohort_scale import survey_and_fill
from .comparisons import Comparison, Evaluation, compare, evaluate
from .demo import SETTINGS, run_demo
from .display import Display, show_progress
from .embedding import EmbeddedStore, NothingEmbeddedError, embed, embedding_status
from .encoder_list import build_encoder, list_encoders
from .fitting import fit_head
from .head_runs import HeadRun, load_head
from .predicting import predict
from .reporting import export, write_report
from .store_files import merge_stores, pack_store, tidy_store
from .viewing import view
