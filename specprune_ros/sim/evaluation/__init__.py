"""Closed-loop evaluation: episodes, settings, results."""
