"""The commands of the build side: simo-build, simo-merge, simo-train, simo-eval, and pictures of
what merging does: simo-relate, simo-scaling, simo-coefficients.

Heavy imports wait until a command runs, so that `--help` is instant.
"""

from simo_build.cli.build import build_command
from simo_build.cli.ending import finish
from simo_build.cli.evaluation import eval_command
from simo_build.cli.manners import in_one_process, polite
from simo_build.cli.merge import merge_command
from simo_build.cli.options import (
    STAGES,
    data_option,
    experts_option,
    json_option,
    recipe_option,
    split_option,
)
from simo_build.cli.pictures import coefficients_command, relate_command, scaling_command
from simo_build.cli.train import train_command

__all__ = [
    "STAGES",
    "build_command",
    "coefficients_command",
    "data_option",
    "eval_command",
    "experts_option",
    "finish",
    "in_one_process",
    "json_option",
    "merge_command",
    "polite",
    "recipe_option",
    "relate_command",
    "scaling_command",
    "split_option",
    "train_command",
]
