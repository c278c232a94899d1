"""The demo: each instruction pruned and dense, others are obeyed, what is missing is said."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from ros_processes import new_domain

pytestmark = [pytest.mark.ros, pytest.mark.timeout(120)]


COMMAND = (sys.executable, '-m', 'specprune_ros.cli.main')


@pytest.mark.slow
@pytest.mark.real_time
def test_without_a_renderer_the_recording_is_the_cameras(tmp_path):
    """And what nobody was trained for is tried, but not pretended to."""
    words = 'juggle the blue cube'
    done = subprocess.run(
        [
            *(*COMMAND, 'demo', '--random'),
            *('--seconds', '4', '--out', str(tmp_path), '--instruction', words),
        ],
        capture_output=True,
        text=True,
        timeout=110,
        # A backend that does not exist stands for drivers that are not installed.
        env={
            **os.environ,
            'ROS_DOMAIN_ID': str(new_domain()),
            'MUJOCO_GL': 'none-such',
            'SPECPRUNE_MUJOCO_GL_CHECKED': '',
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = ' '.join(done.stdout.split())
    assert 'apt-get install' in said
    assert 'played from the recording' in said
    numbers = json.loads((tmp_path / 'demo.json').read_text())
    assert numbers['chunks'] > 3
    assert numbers['tokens_in'] == 512
    assert numbers['tokens_mean'] < 512
    assert list(numbers['instructions']) == [words]
    (attempt,) = numbers['attempts']
    assert (attempt['instruction'], attempt['pruner']) == (words, 'specprune')
    assert (attempt['outcome'], attempt['success']) == ('unknown', False)
    assert numbers['not_reached'] == [{'instruction': words, 'pruner': 'dense'}]
    assert 'not judged' in said and 'not reached' in said
    assert 'outside the vocabulary of this policy: juggle' in log(tmp_path, 'specprune_node')
    assert set(numbers['exit_status'].values()) == {0}
    assert 'random numbers' in said
    for name in ('demo.png', 'demo.gif'):
        assert (tmp_path / name).stat().st_size > 10_000
    for file in (tmp_path / 'log').iterdir():
        assert 'Traceback' not in file.read_text(), file


def log(folder, node):
    return (folder / 'log' / f'{node}.log').read_text()


@pytest.mark.slow
@pytest.mark.real_time
def test_each_instruction_is_done_pruned_and_dense_and_a_person_is_obeyed(tmp_path):
    """With random weights: what is instructed, judged and counted, not whether it succeeds.

    Then it stays until it is interrupted.
    """
    words, spoken = 'move above the red cube', 'lift the blue cube'
    domain = new_domain()
    env = {**os.environ, 'ROS_DOMAIN_ID': str(domain)}
    demo = subprocess.Popen(
        [
            *(*COMMAND, 'demo', '--random', '--stay', '--no-view', '--out', str(tmp_path)),
            *('--instruction', words),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
    )
    try:
        for line in demo.stdout:
            if 'now it is your turn' in line:
                break
        assert subprocess.run([*COMMAND, 'say', spoken], env=env, timeout=60).returncode == 0
        said = ''
        for line in demo.stdout:
            said += line
            if line.startswith(f'{spoken}, specprune: '):
                break
        demo.send_signal(signal.SIGINT)
        said += demo.communicate(timeout=60)[0]
    finally:
        demo.kill()
    assert demo.returncode == 0, said
    assert f'you said: {spoken}' in said
    numbers = json.loads((tmp_path / 'demo.json').read_text())
    pruned, dense, mine = numbers['attempts'][:3]
    for attempt, pruner in ((pruned, 'specprune'), (dense, 'dense')):
        assert (attempt['instruction'], attempt['said_by']) == (words, 'demo')
        assert attempt['pruner'] == pruner
        assert attempt['outcome'] in ('success', 'time_out', 'collision')
        assert attempt['queries'] >= 2
    assert pruned['tokens_mean'] < dense['tokens_mean'] == numbers['tokens_in']
    assert pruned['flops_ratio'] < dense['flops_ratio'] == 1.0
    assert (mine['instruction'], mine['said_by']) == (spoken, 'person')
    assert numbers['not_reached'] == []
    assert spoken in numbers['instructions']
    assert 'success' in numbers['attempts'][0]


@pytest.mark.slow
@pytest.mark.real_time
def test_it_stays_with_its_page_until_it_is_stopped(tmp_path):
    """What `make demo ARGS="--stay"` runs, with one instruction instead of three."""
    demo = subprocess.Popen(
        [*COMMAND, 'demo', '--stay', '--out', str(tmp_path), '--instruction', 'lift the red cube'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, 'ROS_DOMAIN_ID': str(new_domain())},
    )
    address = said = ''
    try:
        for line in demo.stdout:
            said += line
            if 'in the browser: ' in line:
                address = line.split('in the browser: ')[1].strip()
            if 'now it is your turn' in line:
                break
        assert b'<html' in urllib.request.urlopen(address, timeout=20).read(), said
        assert demo.poll() is None
        demo.send_signal(signal.SIGINT)
        said += demo.communicate(timeout=60)[0]
    finally:
        demo.kill()
    assert demo.returncode == 0, said
    numbers = json.loads((tmp_path / 'demo.json').read_text())
    assert numbers['exit_status']['viewer_node'] == 0
    assert 'viewer_node ended' not in said


def test_damaged_weights_are_named_and_nothing_starts(tmp_path, monkeypatch, capsys):
    from specprune_ros.apps.demo import app as demo
    from specprune_ros.sim.training.recipe import Recipe

    folder = tmp_path / 'weights'
    folder.mkdir()
    record = {
        'recipe': Recipe().to_dict(),
        'recipe_sha256': Recipe().hash,
        'weights_sha256': '0' * 64,
    }
    (folder / 'recipe.json').write_text(json.dumps(record))
    (folder / 'model.safetensors').write_bytes(b'half of the')
    monkeypatch.setattr(demo, 'bundled_weights', lambda: str(folder))
    out = tmp_path / 'out'
    options = demo.DemoOptions(
        4.0, out, out / 'demo.json', '', False, 0, ('lift the blue cube',), 10.0, 'chunk'
    )
    assert demo.run_demo(options) == 1
    said = ''.join(capsys.readouterr().out.split())
    assert 'model.safetensors' in said and 'restoreit' in said
    assert not out.exists()


def test_a_recording_that_is_not_the_demos_is_not_removed(tmp_path, capsys, monkeypatch):
    """``--out DIR`` removed ``DIR/bag`` where that was a recording of somebody's arm."""
    from specprune_ros.cli.main import main

    monkeypatch.setenv('ROS_DOMAIN_ID', str(new_domain()))
    mine = tmp_path / 'bag' / 'bag_0.mcap'  # as `ros2 bag record -o bag` names it
    mine.parent.mkdir()
    mine.write_bytes(b'hours of work')
    assert main(['demo', '--out', str(tmp_path)]) == 1
    assert 'bag_0.mcap, which no demo recorded' in ' '.join(capsys.readouterr().out.split())
    assert mine.read_bytes() == b'hours of work'
