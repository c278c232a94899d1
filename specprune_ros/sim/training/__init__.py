"""Recording expert episodes and training the shipped policy."""
