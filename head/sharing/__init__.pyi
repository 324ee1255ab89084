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
    "is_on_hub",
    "is_own",
    "is_packed",
    "markdown_of",
    "pack_run",
    "pinned",
    "run_at",
    "title_of",
    "write_card",
]

from .card_files import CARD_JSON, README, is_own
from .composing import card_of_run, fit_facts, write_card
from .hub_head import is_on_hub
from .markdown import markdown_of
from .model_card import EncoderFacts, GeneFacts, ModelCard, PatientScores
from .pack import pack_run
from .places import pinned, run_at
from .sections import card_sections, title_of
from .unpacking import is_packed
from .wording import CardTable, Section
