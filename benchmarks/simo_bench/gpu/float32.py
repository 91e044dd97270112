"""How exactly a GPU computes in float32: to all 24 bits of it, or to TF32's 11."""

import warnings

import torch


def tf32(on: bool) -> None:
    """Let products and convolutions of float32 round what they multiply to TF32, or not.

    PyTorch has it off for products and on for convolutions.
    """
    with warnings.catch_warnings():
        # These flags are called deprecated since 2.9. What came instead may not be mixed with them,
        # and Inductor still reads them: it would find both, and raise.
        warnings.simplefilter("ignore")
        torch.backends.cuda.matmul.allow_tf32 = on
        torch.backends.cudnn.allow_tf32 = on


def exact() -> None:
    """Compute float32 as float32: everything is held to it."""
    tf32(False)
