__all__ = ["ENDINGS", "FEW_GENES", "Exported", "export_predictions"]

from .export import ENDINGS, FEW_GENES, Exported, export_predictions
