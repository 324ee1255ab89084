__all__ = [
    "CandidateSettings",
    "Candidates",
    "build_all",
    "candidates_in",
    "device_of_kmeans",
    "import_faiss",
    "select_prototypes",
    "selected_count",
    "selection_space",
    "stored_candidates",
    "stored_embeddings",
]

from .candidates import (
    Candidates,
    CandidateSettings,
    device_of_kmeans,
    import_faiss,
    select_prototypes,
    selected_count,
    selection_space,
)
from .stored import build_all, candidates_in, stored_candidates, stored_embeddings
