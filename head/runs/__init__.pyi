__all__ = [
    "FOLDS",
    "GENES",
    "HEAD_JSON",
    "MEASURED",
    "METRICS",
    "NOT_SCORED",
    "PREDICTIONS",
    "UNS",
    "FitReport",
    "FitRequest",
    "HeadCard",
    "PredictReport",
    "Predictions",
    "RunMetrics",
    "RunProtocol",
    "SavedHead",
    "choose_genes",
    "count_parameters",
    "fit_head",
    "fit_request",
    "fit_split",
    "only_writer",
    "predict_slides",
    "prediction_file",
    "predictions_of",
    "read_head",
    "read_metrics",
    "read_prediction",
    "shared_patients_warning",
    "shown_with",
    "slide_table",
    "summary_table",
    "write_table",
    "writing",
]

from .fit import NOT_SCORED, FitReport, choose_genes, fit_head, fit_split, shared_patients_warning
from .head_card import HeadCard
from .prediction import (
    MEASURED,
    Predictions,
    PredictReport,
    predict_slides,
    prediction_file,
    predictions_of,
    read_prediction,
)
from .prediction_folder import UNS
from .request import FitRequest, fit_request
from .run_folder import (
    FOLDS,
    GENES,
    HEAD_JSON,
    METRICS,
    PREDICTIONS,
    SavedHead,
    count_parameters,
    only_writer,
    read_head,
    write_table,
    writing,
)
from .run_metrics import RunMetrics, RunProtocol, read_metrics, shown_with, slide_table, summary_table
