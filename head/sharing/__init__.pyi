__all__ = [
    "CARD_JSON",
    "README",
    "CardTable",
    "EncoderFacts",
    "GeneFacts",
    "ModelCard",
    "PatientScores",
    "Section",
    "card_of_run",
    "card_sections",
    "fit_facts",
    "is_archive",
    "is_own",
    "is_packed",
    "markdown_of",
    "pack_run",
    "run_at",
    "title_of",
    "write_card",
]

from .card_files import CARD_JSON, README, is_own
from .composing import card_of_run, fit_facts, write_card
from .markdown import markdown_of
from .model_card import EncoderFacts, GeneFacts, ModelCard, PatientScores
from .pack import is_archive, is_packed, pack_run, run_at
from .sections import card_sections, title_of
from .wording import CardTable, Section
