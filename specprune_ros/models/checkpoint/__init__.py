"""Released checkpoints: what is in them, whether they will work, and their weights."""
