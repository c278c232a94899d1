"""Lets the tests of this folder import its helpers (``models_toys``)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
