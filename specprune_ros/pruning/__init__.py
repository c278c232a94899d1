"""The pruning method and its rivals: tensors in, kept indices out."""
