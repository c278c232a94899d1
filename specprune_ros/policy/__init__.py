"""Model, pruner and memory together: from an observation to a chunk of actions."""
