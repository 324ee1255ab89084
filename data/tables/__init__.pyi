__all__ = [
    "DECIMAL_COMMA",
    "TABLE_SUFFIXES",
    "THOUSANDS",
    "WideTable",
    "duplicates",
    "find_column",
    "largest_table",
    "number_column",
    "open_bytes",
    "open_text",
    "read_cells",
    "read_columns",
    "read_header",
    "read_names",
    "read_table",
    "read_wide",
    "reading",
    "refuse_large",
    "some",
    "text_column",
]

from .columns import DECIMAL_COMMA, THOUSANDS, find_column, number_column, text_column
from .limits import largest_table, refuse_large
from .tall import TABLE_SUFFIXES, read_cells, read_columns, read_table
from .text import open_bytes, open_text, read_header
from .wide import WideTable, read_names, read_wide
from .words import duplicates, reading, some
