"""What runs a query: eagerly, or as one captured CUDA graph. Tensors in, one answer out."""
