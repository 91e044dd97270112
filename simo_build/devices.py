"""Where heavy work runs."""

import torch


def device() -> torch.device:
    """Give the device to train and to merge on: the first GPU, or else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
