"""LEARNED: the methods that learn their coefficients, by name, with papers and parameters."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from simo_build.learned.settings import NAMES, Settings, parted
from simo_build.merge import Delta
from simo_build.statedict import StateDict
from simo_build.teaching import Teaching
from simo_runtime.errors import RecipeError, unknown


class Mixture(nn.Module, ABC):
    """A merged delta that depends on parameters; its forward pass gives it, name to tensor.

    The deltas are no part of its state, so that this is small.
    """

    @abstractmethod
    def forward(self) -> StateDict: ...

    def project(self) -> None:
        """Bring the parameters back into their bounds after a step, if they have any."""

    @abstractmethod
    def told(self) -> list[dict[str, Any]]:
        """Describe what was learnt in plain values: one dictionary a delta."""


@dataclass(frozen=True)
class LearnedMethod:
    """A learned method, its paper, and its defaults for what all of them share."""

    name: str
    function: Callable[..., Mixture]
    paper: str
    defaults: Mapping[str, Any]

    def check(self, names: Sequence[str]) -> None:
        """Refuse parameters that the method does not have."""
        for name in names:
            if name not in self.known():
                raise unknown(f"parameter of merge.method {self.name}", name, self.known())

    def known(self) -> list[str]:
        """Name all parameters: the method's own, and those that all learned methods share."""
        return [*own_names(self.function), *NAMES]

    def settings(self, **params: Any) -> Settings:
        """Give the settings, the method's defaults where the recipe says nothing."""
        return Settings(**{**self.defaults, **parted(params)[1]})

    def mixture(self, deltas: Sequence[Delta], **params: Any) -> Mixture:
        """Give the merged delta that is to be learnt; parameters of `Settings` change nothing."""
        return self.function(deltas, **parted(params)[0])

    def rehearse(
        self, names: Iterable[str], teachings: Mapping[str, Teaching], **params: Any
    ) -> None:
        """Check all parameters on empty tensors of these names, for tasks that are taught so."""
        self.check(list(params))
        settings = self.settings(**params)
        empty = {name: torch.empty(0) for name in names}
        self.mixture([empty] * len(teachings), **params)
        if settings.loss == "entropy":
            blind = [task for task, teaching in teachings.items() if teaching.entropy is None]
            if blind:
                raise RecipeError(
                    f"merge.loss is entropy, but the predictions of tasks.{blind[0]} are no "
                    "distribution, so they have none: it is for segmentation alone; take outputs, "
                    "features, pseudo or labels"
                )


LEARNED: dict[str, LearnedMethod] = {}

Function = TypeVar("Function", bound=Callable[..., Mixture])


def learned(*, paper: str, **defaults: Any) -> Callable[[Function], Function]:
    """Register a function as the learned method of its own name, with defaults for `Settings`."""
    Settings(**defaults)

    def register(function: Function) -> Function:
        name = function.__name__
        LEARNED[name] = LearnedMethod(name, function, paper, defaults)
        return function

    return register


def own_names(function: Callable[..., Mixture]) -> list[str]:
    """Give the names of a method's own parameters."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
