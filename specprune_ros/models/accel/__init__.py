"""What makes a forward pass faster: fused kernels, float8, packed weights, memory checks."""
