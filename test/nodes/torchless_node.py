"""The real policy node on a machine without PyTorch."""

import sys

sys.modules['torch'] = None  # importing it raises ModuleNotFoundError

from specprune_ros.nodes.policy_node.node import main  # noqa: E402

raise SystemExit(main())
