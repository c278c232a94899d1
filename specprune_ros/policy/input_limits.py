"""What an image and an instruction may be at most; larger ones are refused by whoever reads them.

Apart from the observation, so that nodes and launch files can check without PyTorch.
"""

# Larger images are of no use to a policy of 224 pixels, and a way to exhaust memory.
MAX_SIDE = 4096  # pixels
MIN_SIDE = 16
MAX_INSTRUCTION = 1000  # characters
