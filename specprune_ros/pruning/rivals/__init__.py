"""Other pruning methods, one file each, behind the same interface."""
