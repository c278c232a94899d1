"""How large an input may be. Kept apart, so that nodes without a model need not import one."""

# Larger pictures are refused: nothing a policy of 224 pixels can use, and a way to exhaust memory.
MAX_SIDE = 4096
MIN_SIDE = 16
MAX_INSTRUCTION = 1000  # characters
