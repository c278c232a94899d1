"""``specprune_node``: observations in, action chunks and statistics out."""
