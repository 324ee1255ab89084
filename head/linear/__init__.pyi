__all__ = [
    "HEST_RIDGE",
    "HEST_RIDGE_TUNED",
    "MEAN",
    "RIDGE",
    "FoldedRidge",
    "MeanSettings",
    "RidgeBuilder",
    "RidgeHead",
    "RidgeSettings",
    "fit_ridge",
    "load_ridge",
    "mean_target",
    "training_mean",
]

from .closed_form import FoldedRidge, RidgeBuilder
from .hest_ridge import HEST_RIDGE, HEST_RIDGE_TUNED
from .mean import MEAN, MeanSettings, mean_target, training_mean
from .ridge import RIDGE, RidgeHead, RidgeSettings, fit_ridge, load_ridge
