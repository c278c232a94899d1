"""Fixtures: a policy node in a process of its own, and a node that is its cameras and user."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from executor_bench import bench, ros  # noqa: F401  fixtures
from ros_processes import Process, Rig, new_domain

from specprune_ros.nodes.common.remapping import ALLOWED


@contextmanager
def rigs(folder):
    """Gives a function that makes a rig and its policy node; parameters as keywords with ``__``
    for dots. ``program`` is a Python script that runs the node, for one with faults.
    """
    made = []

    def make(program=(), **parameters):
        from specprune_ros.nodes.common.remapping import ros_arguments

        domain = new_domain()
        values = {
            'instruction': 'lift the red cube',
            'query_rate': 0.0,
            'fresh_wait': 0.0,
            'speed__source': 'none',
            'model__threads': 1,
            'model__random_weights': ALLOWED,
            **parameters,
        }
        process = Process(
            'specprune_node',
            ros_arguments({}, {k.replace('__', '.'): v for k, v in values.items()}),
            domain,
            folder / f'node{len(made)}.log',
            program,
        )
        rig = Rig(domain, tuple(values.get('cameras', ('agent', 'wrist'))))
        rig.process = process
        rig.others = []

        def run(module, arguments):
            """Another node beside it."""
            log = folder / f'{module}.log'
            rig.others.append(Process(module, arguments, domain, log))
            return rig.others[-1]

        rig.run = run
        made.append(rig)
        return rig

    try:
        yield make
    finally:
        for rig in made:
            for process in (rig.process, *rig.others):
                process.stop()
            rig.close()


@pytest.fixture
def rig_with(tmp_path):
    """Makes rigs for one test."""
    with rigs(tmp_path) as make:
        yield make


@pytest.fixture(scope='module')
def module_rig_with(tmp_path_factory):
    """Makes rigs that the tests of a file share."""
    with rigs(tmp_path_factory.mktemp('rigs')) as make:
        yield make
