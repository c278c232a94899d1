"""Tools that start or watch nodes: demo, replay, recordings."""
