"""Whether the process that started this one is still there.

A launch, a shell or an ssh session that is killed outright stops none of its nodes: they notice by
themselves. Imported first of all, before anything that takes time.
"""

from __future__ import annotations

import os

# Set for nodes that must not outlive another process than their parent, too: its process id.
PARENT = 'SPECPRUNE_PARENT'

_parent = os.getppid()


def parent_gone() -> bool:
    """Whether this process was orphaned, or the one that :data:`PARENT` names has ended."""
    if os.getppid() != _parent:
        return True
    named = os.environ.get(PARENT, '')
    if not named.isdigit():
        return False
    try:
        os.kill(int(named), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
