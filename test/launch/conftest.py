"""A DDS domain of its own for each file of this folder, and its helper ``listener``."""

import sys
from pathlib import Path

import pytest
from ros_processes import new_domain

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope='module')
def domain():
    """Set for the launch under test and for the test itself."""
    number = new_domain()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_DOMAIN_ID', str(number))
        patch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        yield number


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """Parameters that leave the test machine some room."""
    path = tmp_path_factory.mktemp('launch') / 'params.yaml'
    path.write_text('/**:\n  ros__parameters:\n    model.threads: 1\n    query_rate: 4.0\n')
    return path
