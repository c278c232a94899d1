"""Policies measured: raced against each other, and against what the device can do."""
