__all__ = [
    "FOLDS",
    "GENES",
    "HEAD_JSON",
    "MEASURED",
    "METRICS",
    "PREDICTIONS",
    "UNS",
    "FitRequest",
    "SavedHead",
    "choose_genes",
    "count_parameters",
    "fit_head",
    "fit_request",
    "fit_split",
    "predict_slides",
    "prediction_file",
    "read_head",
    "read_json",
    "read_prediction",
    "shared_patients_warning",
    "write_json",
    "write_table",
    "writing",
]

from .fit import choose_genes, fit_head, fit_split, shared_patients_warning
from .prediction import MEASURED, UNS, predict_slides, prediction_file, read_prediction
from .request import FitRequest, fit_request
from .run_folder import (
    FOLDS,
    GENES,
    HEAD_JSON,
    METRICS,
    PREDICTIONS,
    SavedHead,
    count_parameters,
    read_head,
    read_json,
    write_json,
    write_table,
    writing,
)
