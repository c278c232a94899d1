"""Node processes of the tests run with this on their path: messages take what Lyrical's take.

The setters of Jazzy and Kilted accept a ``collections.abc.Set`` for a list, which Lyrical
deprecates. Here no value is one, so that assigning a set ends the node; the setters look with
``ROS_PYTHON_CHECK_FIELDS=1`` only.
"""

import collections.abc


class Set(collections.abc.Set):
    """Nothing is registered as one; classes may still be derived from it."""

    __slots__ = ()


collections.abc.Set = Set
