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
    "FittedRun",
    "HeadCard",
    "PredictReport",
    "Predictions",
    "RunMetrics",
    "RunProtocol",
    "SavedHead",
    "TrustedGenes",
    "built_in_settings",
    "check_prediction_folder",
    "choose_genes",
    "count_parameters",
    "fit_head",
    "fit_request",
    "fit_split",
    "nominal_pitch",
    "only_writer",
    "predict_slides",
    "prediction_file",
    "predictions_of",
    "predictors_of",
    "read_card",
    "read_head",
    "read_metrics",
    "read_prediction",
    "restore_run",
    "shared_patients_warning",
    "shown_with",
    "slide_table",
    "summary_table",
    "write_table",
    "writing",
]

from .fit import NOT_SCORED, FitReport, choose_genes, fit_head, fit_split, shared_patients_warning
from .head_card import HeadCard, read_card
from .metrics_file import (
    FittedRun,
    RunMetrics,
    RunProtocol,
    TrustedGenes,
    predictors_of,
    read_metrics,
    shown_with,
    slide_table,
    summary_table,
)
from .prediction import Predictions, PredictReport, predict_slides, predictions_of
from .prediction_files import MEASURED, UNS, check_prediction_folder, prediction_file, read_prediction
from .request import FitRequest, fit_request
from .run_folder import (
    FOLDS,
    GENES,
    HEAD_JSON,
    METRICS,
    PREDICTIONS,
    only_writer,
    restore_run,
    write_table,
    writing,
)
from .saved_head import SavedHead, built_in_settings, count_parameters, read_head
from .spatial_metadata import nominal_pitch
