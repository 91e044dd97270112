"""Methods that learn their coefficients on images: LEARNED holds one function each.

A function takes the deltas and gives a `Mixture`, a merged delta that depends on parameters. Those
are learnt by gradient steps on what `settings.LOSSES` names, encoder and heads frozen. Functions'
keyword arguments and the fields of `Settings` are the recipe's `merge.params`.
"""

from simo_build.learned.learning import Learning
from simo_build.learned.ranked import Ranked, adarank
from simo_build.learned.registry import LEARNED, LearnedMethod, Mixture
from simo_build.learned.scaled import Partitioned, Scaled, adamerging, atlas, supermerge, tint
from simo_build.learned.settings import LOSSES, Settings

__all__ = [
    "LEARNED",
    "LOSSES",
    "LearnedMethod",
    "Learning",
    "Mixture",
    "Partitioned",
    "Ranked",
    "Scaled",
    "Settings",
    "adamerging",
    "adarank",
    "atlas",
    "supermerge",
    "tint",
]
