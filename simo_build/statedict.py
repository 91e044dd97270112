"""Weights as plain dictionaries, name to tensor: the only form in which they are merged."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

StateDict = dict[str, Tensor]


def subtract(tuned: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> StateDict:
    """Give tuned - base in float32: this is the task vector."""
    return {name: tuned[name].float() - base[name].float() for name in base}


def add(base: Mapping[str, Tensor], delta: Mapping[str, Tensor]) -> StateDict:
    """Give base + delta in float32."""
    return {name: base[name].float() + delta[name] for name in base}


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Hash names, shapes and float32 values; storing the same weights otherwise changes nothing."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to(device="cpu", dtype=torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().reshape(-1).data)  # a view: nothing is copied
    return digest.hexdigest()


def prefixed(state: Mapping[str, Tensor], prefix: str) -> StateDict:
    """Put a prefix before every name."""
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def part(state: Mapping[str, Tensor], prefix: str) -> StateDict:
    """Take the tensors under a prefix, without the prefix."""
    return {n.removeprefix(prefix): tensor for n, tensor in state.items() if n.startswith(prefix)}


def on_cpu(weights: Mapping[str, Tensor]) -> StateDict:
    """Give weights as they are kept: copies, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}


def misfits(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Iterable[str]:
    """Describe every tensor of `state` that is missing, foreign or of another shape than `like`."""
    for name in sorted(set(like) | set(state)):
        if name not in state:
            yield f"{name}: missing, {tuple(like[name].shape)} is needed"
        elif name not in like:
            yield f"{name}: {tuple(state[name].shape)}, the model has no such tensor"
        elif state[name].shape != like[name].shape:
            yield f"{name}: {tuple(state[name].shape)} here, {tuple(like[name].shape)} in the model"
