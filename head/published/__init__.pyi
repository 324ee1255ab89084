__all__ = [
    "BLEEP",
    "EGN",
    "HIST2ST",
    "HISTOGENE",
    "KNN",
    "MLP",
    "ST_NET",
    "TCGN",
    "TRIPLEX",
]

from .bleep import BLEEP
from .egn import EGN
from .hist2st import HIST2ST
from .histogene import HISTOGENE
from .knn import KNN
from .mlp import MLP
from .st_net import ST_NET
from .tcgn import TCGN
from .triplex import TRIPLEX
