"""From a wanted tool velocity to joint velocities."""

from __future__ import annotations

import numpy as np

from specprune_ros.robot.geometry import Twist


def joint_velocities(
    jacobian: np.ndarray, twist: Twist, damping: float = 0.02
) -> tuple[float, ...]:
    """Damped least squares: rad/s ``[n]`` that move the tool with ``twist``.

    ``jacobian`` is ``[6, n]``, linear rows (m) first. The damping, in m or rad per rad, bounds the
    joint velocities near a singularity at the price of a tool velocity that falls behind there
    (Nakamura and Hanafusa 1986; Wampler 1986).
    """
    wanted = np.array(twist.six)
    inner = jacobian @ jacobian.T + damping**2 * np.eye(6)
    return tuple(float(v) for v in jacobian.T @ np.linalg.solve(inner, wanted))
