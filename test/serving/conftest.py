"""The shipped policy, loaded once."""

import pytest

from specprune_ros.policy.build import build_policy
from specprune_ros.sim.training.export import SHIPPED


@pytest.fixture(scope='session')
def loaded():
    return build_policy(str(SHIPPED), device='cpu', threads=1).loaded
