__all__ = [
    "HEST_RIDGE",
    "MEAN",
    "RIDGE",
    "Chunk",
    "FoldedRidge",
    "Group",
    "MeanSettings",
    "RidgeHead",
    "RidgeSettings",
    "fit_ridge",
    "load_ridge",
    "mean_target",
    "training_mean",
]

from .closed_form import Chunk, FoldedRidge, Group
from .hest_ridge import HEST_RIDGE
from .mean import MEAN, MeanSettings, mean_target, training_mean
from .ridge import RIDGE, RidgeHead, RidgeSettings, fit_ridge, load_ridge
