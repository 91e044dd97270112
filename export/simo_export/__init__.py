"""From PyTorch modules to a bundle: fold, export to ONNX, check against PyTorch, write."""
