"""Robot descriptions that harm a library are refused before one sees them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specprune_ros.robot import description, description_trial
from specprune_ros.robot.description import UrdfError, check
from specprune_ros.robot.description_trial import try_out


def link(name):
    return f'<link name="{name}"/>'


def joint(name, parent, child, kind='fixed'):
    return (
        f'<joint name="{name}" type="{kind}"><parent link="{parent}"/><child link="{child}"/>'
        '<axis xyz="0 0 1"/><limit lower="-1" upper="1" velocity="1" effort="1"/></joint>'
    )


def chain(count, kind='fixed'):
    """``count`` links one behind the other."""
    parts = [link('l0')]
    for i in range(count):
        parts += [link(f'l{i + 1}'), joint(f'j{i}', f'l{i}', f'l{i + 1}', kind)]
    return robot(*parts)


def star(count):
    """``count`` links on one parent."""
    parts = [link('b')]
    for i in range(count):
        parts += [link(f'l{i}'), joint(f'j{i}', 'b', f'l{i}')]
    return robot(*parts)


def robot(*parts):
    return f'<robot name="r">{"".join(parts)}</robot>'


# What was sent in the attack, and its neighbours.
HARMFUL = {
    'a chain that overflows the stack': (chain(3772), 'more than 1000 links'),
    'joints whose tables fill the machine': (chain(400, 'revolute'), 'more than 100 movable'),
    'links that hold the loop': (star(5000), 'more than 1000 links'),
    'deep within the count': (chain(500), 'more than 100 joints lie between'),
    'a circle': (
        robot(link('a'), link('b'), joint('j', 'a', 'b'), joint('k', 'b', 'a')),
        'joints',
    ),
    'two parents': (
        robot(*map(link, 'abc'), joint('j', 'a', 'c'), joint('k', 'b', 'c')),
        'two parents',
    ),
    'joints without links': (
        robot(*(joint(f'j{i}', f'a{i}', f'b{i}') for i in range(2000))),
        'joints',
    ),
    'elements within elements': ('<robot>' + '<a>' * 100_000, 'nests more than 32'),
    'elements beside elements': (robot('<a/>' * 200_000), 'more than 100000 elements'),
    'a long attribute': (robot(f'<link name="{"x" * 20_000}"/>'), 'attribute'),
    'entities': ('<!DOCTYPE r [<!ENTITY a "b">]><robot name="r"/>', 'document type'),
    'too long': (' ' * 10 + 'x' * description.MAX_URDF, 'at most'),
    'empty': (' \n', 'empty'),
    'no XML': ('robot: {}', 'does not parse'),
    'surrogates': ('<robot name="\ud800"/>', 'does not parse'),
}


@pytest.mark.parametrize('name', HARMFUL)
def test_harmful_descriptions_are_refused_at_once(name):
    text, reason = HARMFUL[name]
    begin = time.process_time()
    with pytest.raises(UrdfError, match=reason):
        check(text)
    assert time.process_time() - begin < 1.0


def test_a_description_is_read_in_a_child_that_may_crash_or_hang(monkeypatch):
    from specprune_ros.sim.arm.urdf import urdf

    try_out(urdf(), 'tcp')
    with pytest.raises(UrdfError, match="no link 'nowhere'"):
        try_out(urdf(), 'nowhere')
    with pytest.raises(UrdfError, match='more than 100 movable'):
        try_out(chain(400, 'revolute'), 'l1')
    # Without the counts the library overflows its stack, fills memory or takes its time: in the
    # child, and this process lives to say so.
    monkeypatch.setenv('PYTHONPATH', f'{Path(__file__).parent}:{os.environ["PYTHONPATH"]}')
    child = 'test_description:read_without_counting'
    from specprune_ros.limited_process import LimitedProcessError, call

    with pytest.raises(LimitedProcessError, match='crashed'):
        call(child, chain(60_000), memory=description_trial.CHILD_MEMORY, seconds=60.0)
    with pytest.raises(LimitedProcessError, match='memory'):
        call(child, chain(400, 'revolute'), memory=description_trial.CHILD_MEMORY, seconds=60.0)


def read_without_counting(text):
    """In a child."""
    import pinocchio

    return str(pinocchio.buildModelFromXML(text).createData())


def threads(_):
    """In a child."""
    import numpy as np

    assert np.ones((2, 2)).sum() == 4.0
    return len(os.listdir('/proc/self/task'))


def test_a_child_starts_no_thread_per_processor(monkeypatch):
    """Each takes some 40 MiB: on a large machine no description could be read."""
    from specprune_ros.limited_process import MEBIBYTE, call

    monkeypatch.setenv('PYTHONPATH', f'{Path(__file__).parent}:{os.environ["PYTHONPATH"]}')
    for name in ('OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        monkeypatch.setenv(name, '2')
    assert call('test_description:threads', None, memory=1024 * MEBIBYTE, seconds=60.0) == 1


@pytest.mark.parametrize('paths', [':/nowhere', None])
def test_no_file_of_the_working_folder_is_run(tmp_path, monkeypatch, paths):
    from specprune_ros.limited_process import MEBIBYTE, call

    (tmp_path / 'inspect.py').write_text('raise RuntimeError("a file of the lab was run")')
    monkeypatch.chdir(tmp_path)
    if paths is None:
        monkeypatch.delenv('PYTHONPATH')
    else:
        monkeypatch.setenv('PYTHONPATH', paths)
    assert call('inspect:cleandoc', ' a', memory=1024 * MEBIBYTE, seconds=60.0) == 'a'


names = st.sampled_from(['a', 'b', 'c', 'd', '', 'x' * 50])
elements = st.one_of(
    names.map(link),
    st.builds(joint, names, names, names, st.sampled_from(['fixed', 'revolute', 'floating', '?'])),
    st.text(max_size=5),
    st.sampled_from(['<link>', '</robot>', '<joint name="j"/>', '<!--', '&a;', '<a b="']),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(elements, max_size=30))
def test_any_text_is_checked_or_refused(parts):
    try:
        check(robot(*parts))
    except UrdfError as error:
        assert str(error).startswith('robot_description')
