"""``chunk_executor``: action chunks in, safe arm commands out."""
