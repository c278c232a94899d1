"""LIBERO's task suites as OpenVLA-OFT's authors evaluate them, and the policies that fit.

The numbers are those of ``experiments/robot/libero/run_libero_eval.py`` of ``moojink/openvla-oft``
at 213c5ff.
"""

from __future__ import annotations

from dataclasses import dataclass

from specprune_ros.policy.policy import Policy

CONTROL_HZ = 20.0
EXECUTED = 8  # rows of a chunk played before the next query: all that OFT gives
ACTION_DIM, PROPRIO_DIM, GRIPPER_DIM = 7, 8, 6
VIEWS = ('agentview_image', 'robot0_eye_in_hand_image')  # third person, wrist


class WrongPolicy(ValueError):
    """A policy that is not of LIBERO's robot or suite; the message says what would be right."""


@dataclass(frozen=True)
class Suite:
    """One suite. ``max_steps`` are control steps after the ``wait_steps`` in which things come to
    rest; ``trials`` are the fixed initial states of each of its ``tasks``.
    """

    name: str
    max_steps: int
    tasks: int = 10
    trials: int = 50
    wait_steps: int = 10

    @property
    def unnorm_keys(self) -> tuple[str, str]:
        """Names of the statistics that fit, the first found counts."""
        return self.name, f'{self.name}_no_noops'


SUITES = {
    'spatial': Suite('libero_spatial', 220),
    'object': Suite('libero_object', 280),
    'goal': Suite('libero_goal', 300),
    '10': Suite('libero_10', 520),
    '90': Suite('libero_90', 400, tasks=90),
}


def suite(name: str) -> Suite:
    """A suite by its name, ``spatial`` or ``libero_spatial``. Raises ``ValueError``."""
    try:
        return SUITES[name.removeprefix('libero_')]
    except KeyError:
        raise ValueError(f'suite: {name!r}, want one of {", ".join(SUITES)}') from None


def check_policy(policy: Policy, suite: Suite, executed: int = EXECUTED) -> None:
    """Raise :class:`WrongPolicy` unless this policy can be played in ``suite``."""
    config, action = policy.config, policy.config.action
    wrong = [
        f'{what} {is_!r}, LIBERO wants {want}'
        for what, is_, fits, want in (
            ('action_dim', config.action_dim, config.action_dim == ACTION_DIM, ACTION_DIM),
            (
                'proprio_dim',
                config.proprio_dim,
                config.proprio_dim in (0, PROPRIO_DIM),
                f'{PROPRIO_DIM} (or 0)',
            ),
            (
                'cameras',
                list(config.cameras),
                1 <= len(config.cameras) <= len(VIEWS),
                'the third-person one, and the wrist after it if at all',
            ),
            ('control_hz', config.control_hz, config.control_hz == CONTROL_HZ, CONTROL_HZ),
            ('action.kind', action.kind, action.kind == 'ee_delta', "'ee_delta'"),
            (
                'action.gripper_dim',
                action.gripper_dim,
                action.gripper_dim == GRIPPER_DIM,
                GRIPPER_DIM,
            ),
            (
                'action.gripper_sense',
                action.gripper_sense,
                action.gripper_sense == 'one_is_open',
                "'one_is_open'",
            ),
        )
        if not fits
    ]
    if wrong:
        raise WrongPolicy(f'the policy is not of LIBERO: {"; ".join(wrong)}')
    key = policy.loaded.statistics.key
    if key not in suite.unnorm_keys:
        has = f'statistics are of {key!r}' if key else 'statistics have no name (random weights?)'
        raise WrongPolicy(
            f"the policy's {has}; {suite.name} wants {' or '.join(suite.unnorm_keys)}: load a "
            f'checkpoint of this suite with unnorm_key {suite.name!r}'
        )
    if not 1 <= executed <= config.chunk:
        raise WrongPolicy(f'executed: {executed}, want 1 to {config.chunk}, the rows of a chunk')
