"""What TensorRT made of a graph: in which types its layers compute, and whether attention is fused.

From the engine inspector's JSON (`Layers`, each with `Outputs` and their `Format/Datatype`). The
wording of types differs between versions ("Half", "Row major linear FP16 format"), so that words
are looked for. Attention is fused where a kernel is named for multi-head attention
(`_gemm_mha_v2`, `fmha`); a softmax by itself is attention that is not.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simo_runtime.errors import BackendError

TYPES = {
    "fp32": r"float|fp32|f32",
    "fp16": r"half|fp16|f16",
    "bf16": r"bfloat16|bf16",
    "int8": r"int8|i8",
    "fp8": r"fp8|e4m3\w*|f8",
    "uint8": r"uint8|u8",
    "int32": r"int32|i32",
    "int64": r"int64|i64",
    "bool": r"bool",
}
FUSED = re.compile(r"(ge[mv]+_|f|_|\b)mha(_|\b)|fmha|flash_?att", re.IGNORECASE)
SOFTMAX = re.compile(r"softmax", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers of an engine."""

    count: int
    types: Mapping[str, int]  # layers by the type of their first output; `unknown` among them
    using: Mapping[str, int]  # layers that take or give a type; one may use several
    fused_attention: int  # kernels of multi-head attention
    softmax: int  # softmaxes by themselves

    def share(self, kind: str) -> float:
        """Give the share of the layers that put out a type."""
        return self.types.get(kind, 0) / max(self.count, 1)

    def summary(self) -> str:
        """Say it in a line."""
        by_size = sorted(self.types.items(), key=lambda entry: (-entry[1], entry[0]))
        shares = ", ".join(f"{kind} {self.share(kind):.0%}" for kind, _ in by_size)
        attention = f"{self.fused_attention} fused attention, {self.softmax} softmax"
        return f"{self.count} layers: {shares or 'none'}; {attention}"


def read_layers(text: str) -> Layers:
    """Read the inspector's JSON; BackendError if it is none."""
    try:
        layers = json.loads(text)["Layers"]
        parsed = [_layer(one) for one in layers]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        told = f"TensorRT's engine inspector gives no list of layers: {error}"
        raise BackendError(told) from error
    kinds = Counter(_type(_sides(one, "Outputs")[:1]) for one in parsed)
    used = Counter(kind for one in parsed for kind in _used(one))
    named = [" ".join(str(one.get(key, "")) for key in ("Name", "TacticName")) for one in parsed]
    fused = [name for name in named if FUSED.search(name)]
    softmax = [name for name in named if SOFTMAX.search(name) and name not in fused]
    return Layers(
        count=len(parsed),
        types=dict(sorted(kinds.items())),
        using=dict(sorted(used.items())),
        fused_attention=len(fused),
        softmax=len(softmax),
    )


def _layer(entry: Any) -> dict[str, Any]:
    """Give a layer as a mapping; without details it is a name alone."""
    return {"Name": entry} if isinstance(entry, str) else dict(entry)


def _sides(layer: Mapping[str, Any], side: str) -> list[Mapping[str, Any]]:
    return list(layer.get(side) or [])


def _used(layer: Mapping[str, Any]) -> set[str]:
    sides = [*_sides(layer, "Inputs"), *_sides(layer, "Outputs")]
    return {_type([one]) for one in sides}


def _type(values: Sequence[Mapping[str, Any]]) -> str:
    said = " ".join(str(one.get("Format/Datatype", "")) for one in values).lower()
    for kind, words in TYPES.items():
        if re.search(rf"\b({words})\b", said):
            return kind
    return "unknown"
