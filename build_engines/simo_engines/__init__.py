"""From a bundle's graphs to TensorRT engines, on the machine that will run them."""
