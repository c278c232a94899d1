"""LIBERO's protocol, on a small package with LIBERO's own interface and an arm that obeys."""

import importlib
import io
import json
import math
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from specprune_ros.cli.main import main
from specprune_ros.models.checkpoint.files import CheckpointError
from specprune_ros.models.load import random_policy_model, save_policy_model
from specprune_ros.models.presets import default_tokenizer
from specprune_ros.models.statistics import Statistics
from specprune_ros.policy.build import build_policy
from specprune_ros.policy.policy import Policy
from specprune_ros.robot.geometry import rotation_vector
from specprune_ros.sim.arm.render_backend import NoRenderer
from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
from specprune_ros.sim.libero import episodes as libero
from specprune_ros.sim.libero import library as libero_library
from specprune_ros.sim.libero.episodes import LiberoTask, command, episodes
from specprune_ros.sim.libero.library import MissingLibero, check_libero
from specprune_ros.sim.libero.suites import SUITES, WrongPolicy, check_policy, suite

DATA = Path(__file__).parents[2].parent / 'shared' / 'data'
SPATIAL = SUITES['spatial']
MOVE = [0.1, -0.2, 0.3, 0.0, 0.1, 0.0]  # what the policy below always does

ROOT = """
import os, yaml
config_file = os.path.join(os.environ['LIBERO_CONFIG_PATH'], 'config.yaml')
def get_libero_path(query_key):
    with open(config_file) as file:
        return yaml.safe_load(file)[query_key]
"""
BENCHMARK = """
import os, torch
from typing import NamedTuple
from libero.libero import get_libero_path

class Task(NamedTuple):
    name: str
    language: str
    problem: str
    problem_folder: str
    bddl_file: str
    init_states_file: str

class LIBERO_SPATIAL:
    def __init__(self, task_order_index=0):
        print('[info] using task orders')
        self.tasks = [
            Task(f't{i}', f'Pick up bowl {i}', 'L', 'libero_spatial', f't{i}.bddl', f't{i}.init')
            for i in range(3)
        ]
        self.n_tasks = len(self.tasks)
    def get_task(self, i):
        return self.tasks[i]
    def get_task_init_states(self, i):
        task = self.tasks[i]
        folder = get_libero_path('init_states')
        return torch.load(os.path.join(folder, task.problem_folder, task.init_states_file))

def get_benchmark_dict(help=False):
    return {'libero_spatial': LIBERO_SPATIAL}
"""
ENVS = """
import os
import numpy as np

class OffScreenRenderEnv:
    made = []
    def __init__(self, bddl_file_name, camera_heights=128, camera_widths=128):
        assert os.path.exists(bddl_file_name)
        self.log = [('make', os.path.basename(bddl_file_name))]
        self.size = (camera_heights, camera_widths)
        self.made.append(self)
    def seed(self, seed):
        np.random.seed(seed)
        self.log.append(('seed', seed))
    def reset(self):
        self.fixture = float(np.random.uniform())
        self.log.append(('reset',))
        self.over = True  # until the state is set
        return self._seen()
    def set_init_state(self, state):
        self.log.append(('state', float(state[0])))
        self.position, self.angle, self.steps, self.over = np.zeros(3), 0.0, 0, False
        return self._seen()
    def step(self, action):
        assert type(action) is list and len(action) == 7
        if self.over:
            raise ValueError('executing action in terminated episode')
        self.log.append(('step', tuple(action)))
        self.position = self.position + 0.01 * np.array(action[:3])
        self.angle += 0.01 * action[4]
        self.steps += 1
        # A task that wants the hand moved with its fingers closed: +1 closes here.
        self.over = self.position[2] > 0.0375 and action[6] == 1.0
        return self._seen(), 0.0, bool(self.over), {}
    def close(self):
        self.log.append(('close',))
    def _seen(self):
        image = np.full((*self.size, 3), 60, np.uint8)
        image[:40, :80] = (250, 0, 0)
        half = np.pi / 2 + getattr(self, 'angle', 0.0) / 2
        return {
            'agentview_image': image,
            'robot0_eye_in_hand_image': image // 2,
            'robot0_eef_pos': getattr(self, 'position', np.zeros(3)),
            'robot0_eef_quat': np.array([0.0, np.sin(half), 0.0, np.cos(half)]),
            'robot0_gripper_qpos': np.array([0.04, -0.04]),
        }
"""


def states_as_released(values):
    """A file as ``torch.save`` wrote it with numpy 1, which names numpy's modules otherwise."""
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(values, new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, 'w') as target:
        for name in source.namelist():
            data = source.read(name).replace(b'cnumpy._core.', b'cnumpy.core.')
            target.writestr(name, data)
    assert b'numpy.core.multiarray' in old.getvalue()
    return old.getvalue()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The small package, installed and configured."""
    site, data = tmp_path / 'site', tmp_path / 'data'
    sources = {'__init__': ROOT, 'benchmark/__init__': BENCHMARK, 'envs/__init__': ENVS}
    for name, source in sources.items():
        path = site / 'libero' / 'libero' / f'{name}.py'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    for name, version in (('robosuite', '1.4.1'), ('bddl', '1.0.1')):
        (site / f'{name}.py').write_text('')
        info = site / f'{name}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        )
    for folder in ('bddl_files', 'init_states'):
        (data / folder / 'libero_spatial').mkdir(parents=True)
    for task in range(3):
        (data / 'bddl_files' / 'libero_spatial' / f't{task}.bddl').write_text('')
        values = np.arange(50.0)[:, None] + 100 * task
        path = data / 'init_states' / 'libero_spatial' / f't{task}.init'
        path.write_bytes(states_as_released(values))
    lines = [f'{folder}: {data / folder}\n' for folder in ('bddl_files', 'init_states')]
    (data / 'config.yaml').write_text(''.join(lines))
    monkeypatch.setenv('LIBERO_CONFIG_PATH', str(data))
    monkeypatch.setenv('MUJOCO_GL', 'egl')
    monkeypatch.setattr(libero_library, 'choose', lambda: 'egl')
    monkeypatch.syspath_prepend(str(site))
    forget()
    yield data
    forget()


def forget():
    libero._library.cache_clear()
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.split('.')[0] == 'libero']:
        del sys.modules[name]


def made():
    return sys.modules['libero.libero.envs'].OffScreenRenderEnv.made


def policy_that(gripper, key='libero_spatial_no_noops'):
    """A real policy whose statistics leave its actions no choice but ``MOVE`` and ``gripper``."""
    action = np.array([*MOVE, gripper])
    scales = Statistics(
        action, action, np.ones(7, bool), np.full(8, -4.0), np.full(8, 4.0), key=key
    )
    return Policy(replace(loaded(), statistics=scales))


_loaded = []


def loaded():
    if not _loaded:
        _loaded.append(random_policy_model('tiny', 0))
    return _loaded[0]


def listened(policy):
    """The runner, and the list of all observations that its policy will be queried with."""
    requested, act = [], policy.act

    def listen(observation):
        requested.append(observation)
        return act(observation)

    policy.act = listen
    return PolicyRunner(policy), requested


class Constant(PolicyRunner):
    """Always the same chunk, for what does not depend on the policy."""

    def __call__(self, observation):
        return np.array([[*MOVE, 1.0]] * 8)


def test_suites_are_the_authors():
    steps = {name: one.max_steps for name, one in SUITES.items()}
    assert steps == {'spatial': 220, 'object': 280, 'goal': 300, '10': 520, '90': 400}
    assert all((one.wait_steps, one.trials) == (10, 50) for one in SUITES.values())
    assert suite('libero_10') is suite('10') and suite('10').unnorm_keys[1] == 'libero_10_no_noops'
    with pytest.raises(ValueError, match="'long', want one of spatial, object"):
        suite('long')


def test_one_episode_is_the_authors_protocol(package):
    runner, requested = listened(policy_that(gripper=0.0))
    with LiberoTask(SPATIAL, 1) as task:
        played = task.play(runner, trial=2)
    (simulator,) = made()
    assert simulator.size == (256, 256)
    # Seeded once; the draws of trials 0 and 1 come first, as where they were played.
    assert simulator.log[:6] == [
        ('make', 't1.bddl'),
        ('seed', 0),
        *[('reset',)] * 3,
        ('state', 102.0),
    ]
    steps = [entry[1] for entry in simulator.log if entry[0] == 'step']
    assert steps[:10] == [(0, 0, 0, 0, 0, 0, -1)] * 10
    # Closed is 0 for the policy and +1 for the simulator, which must see it to be content.
    assert len(steps) == 10 + played.steps and played.steps == 13
    np.testing.assert_allclose(steps[10:], [[*MOVE, 1.0]] * 13, atol=1e-6)
    assert played.success and played.queries == 2 and simulator.log[-1] == ('close',)

    first, second = requested
    assert first.instruction == 'Pick up bowl 1' and list(first.images) == [
        *runner.policy.config.cameras
    ]
    for camera, bright in zip(first.images, (250, 125), strict=True):
        pixels = first.images[camera].pixels
        assert pixels.shape == (256, 256, 3)
        assert (pixels[-40:, -80:, 0] == bright).all() and pixels[:, :, 0].sum() == (
            bright * 3200 + (60 if bright == 250 else 30) * (65536 - 3200)
        )
    assert first.speed.v_t == 0.0 and first.speed.v_r == 0.0
    assert second.stamp_ns - first.stamp_ns == 400_000_000  # 8 steps at 20 Hz
    np.testing.assert_allclose(second.proprio[:3], 0.08 * np.array(MOVE[:3]), atol=1e-9)
    # Beyond pi: not the shorter way round.
    np.testing.assert_allclose(second.proprio[3:6], [0, math.pi + 0.008, 0], atol=1e-6)
    np.testing.assert_allclose(second.proprio[6:], [0.04, -0.04])
    assert second.speed.v_t == pytest.approx(0.2 * math.hypot(*MOVE[:3]))
    assert second.speed.dz == pytest.approx(0.06) and second.speed.v_r == pytest.approx(0.02)


def test_the_prior_is_made_anew_in_the_slack(package):
    """Rows with slack refresh never made one here."""
    policy = policy_that(gripper=1.0)
    results, spent = [], {}
    runner = PolicyRunner(policy, results.append)
    short = replace(SPATIAL, max_steps=16)
    with LiberoTask(short, 0) as task:
        for when in ('never', 'slack'):
            policy.set_params(policy.params.replace(refresh_when=when))
            results.clear()
            assert task.play(runner, 0).queries == 2
            spent[when] = [result.refreshes.done for result in results]
    assert spent == {'never': [0, 0], 'slack': [0, 1]}


def test_step_limit_controls_and_open_loop(package):
    """With the fingers open the task is never done; waiting does not count."""
    policy = policy_that(gripper=1.0)
    runner, requested = listened(policy)
    short = replace(SPATIAL, max_steps=9)
    with LiberoTask(short, 0) as task:
        played = task.play(runner, 0, executed=3, blind=True, instruction='turn on the stove')
        assert (played.outcome, played.steps, played.queries) == ('time_out', 9, 3)
        assert made()[0].log[-1][1][6] == -1.0
        assert requested[0].instruction == 'turn on the stove'
        assert not any(p.pixels.any() for p in requested[0].images.values())
        with pytest.raises(WrongPolicy, match='executed: 9, want 1 to 8'):
            task.play(runner, 0, executed=9)
        with pytest.raises(ValueError, match='trial: 50, libero_spatial task 0 has 0 to 49'):
            task.play(runner, 50)
        policy.max_normalised_action = 1e-9
        refused = task.play(runner, 0)
    assert not refused.success and 'is not believed' in refused.reason and refused.queries == 0


def test_rows_are_paired_whatever_was_played_before(package):
    runner = Constant(policy_that(gripper=1.0))
    short = replace(SPATIAL, max_steps=1, wait_steps=1)
    fixtures = []
    for order in ((0, 1, 2), (2,), (0, 2), (2, 0, 2)):
        with LiberoTask(short, 0) as task:
            for trial in order:
                task.play(runner, trial)
                np.random.uniform(size=5)  # a stranger's
        fixtures.append(made()[-1].fixture)
    assert len(set(fixtures)) == 1
    np.random.seed(0)
    assert fixtures[0] == np.random.uniform(size=3)[2]


def test_episodes_in_order(package, capsys):
    found = list(episodes(SPATIAL, trials=2, tasks=[2, 0]))
    assert [(one.task, one.trial) for one in found] == [(2, 0), (2, 1), (0, 0), (0, 1)]
    assert found[0].instruction == 'Pick up bowl 2'
    assert len(list(episodes(SPATIAL))) == 3 * 50
    assert capsys.readouterr().out == ''  # results go there
    with pytest.raises(ValueError, match='trials: 51, libero_spatial has 1 to 50 a task'):
        list(episodes(SPATIAL, trials=51))
    with pytest.raises(ValueError, match='task: 3, libero_spatial has 0 to 2'):
        LiberoTask(SPATIAL, 3)
    with pytest.raises(MissingLibero, match='no suite libero_goal'):
        LiberoTask(SUITES['goal'], 0)


def test_gripper_and_rotation():
    assert [command([0.0] * 6 + [g])[6] for g in (0.0, 0.2, 0.9, 1.0)] == [1.0, 1.0, -1.0, -1.0]
    np.testing.assert_array_equal(
        rotation_vector([0, 0, 0, 1.0000001], shorter=False), np.zeros(3)
    )
    half = 0.7
    turned = rotation_vector([math.sin(half), 0, 0, math.cos(half)], shorter=False)
    np.testing.assert_allclose(turned, [1.4, 0, 0])


def test_rotation_of_a_real_observation():
    """The authors' sample turns by more than pi; the shorter way round would flip its sign."""
    path = DATA / 'libero_spatial_observation.npz'
    if not path.exists():
        pytest.skip(f'{path} is not here')
    vector = np.load(path)['state'][3:6]
    angle = float(np.linalg.norm(vector))
    assert angle > math.pi
    quaternion = [*(vector / angle * math.sin(angle / 2)), math.cos(angle / 2)]
    np.testing.assert_allclose(rotation_vector(quaternion, shorter=False), vector, atol=1e-9)


def test_what_is_missing_is_named(package, monkeypatch):
    notes = check_libero()
    assert 'robosuite 1.4.1' in notes[0]
    monkeypatch.setattr(libero_library, '_version', {'robosuite': '1.4.0', 'mujoco': '3.4.0'}.get)
    assert 'task 5' in check_libero()[1]
    monkeypatch.setattr(libero_library, '_version', {'robosuite': '1.4.0', 'mujoco': '3.3.7'}.get)
    assert len(check_libero()) == 1
    monkeypatch.setattr(libero_library, '_version', {'robosuite': '1.5.1', 'mujoco': '3.3.7'}.get)
    with pytest.raises(MissingLibero, match='robosuite 1.5.1 is installed'):
        check_libero()
    monkeypatch.setattr(libero_library, '_version', {'robosuite': '1.4.0', 'mujoco': '3.3.7'}.get)

    def no_renderer():
        raise NoRenderer('MuJoCo cannot render')

    monkeypatch.setattr(libero_library, 'choose', no_renderer)
    with pytest.raises(MissingLibero, match='MuJoCo cannot render'):
        check_libero()
    config = package / 'config.yaml'
    config.write_text(config.read_text().replace('data/init_states', 'data/gone'))
    with pytest.raises(MissingLibero, match='init_states is .*gone, which is no folder'):
        check_libero()
    config.write_text('bddl_files: 7')
    with pytest.raises(MissingLibero, match='bddl_files is 7'):
        check_libero()
    config.unlink()
    with pytest.raises(MissingLibero, match='config.yaml: this file') as error:
        check_libero()
    for part in (
        'pip install hf-libero',
        "echo n | python -c 'import libero.libero'",
        'MUJOCO_GL',
    ):
        assert part in str(error.value)
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p != str(package.parent / 'site')])
    forget()
    with pytest.raises(MissingLibero, match='the Python module libero is not installed'):
        LiberoTask(SPATIAL, 0)


def test_policies_of_others_are_refused(tmp_path):
    check_policy(policy_that(0.0), SPATIAL)
    with pytest.raises(WrongPolicy, match="'libero_10_no_noops'; libero_spatial wants"):
        check_policy(policy_that(0.0, 'libero_10_no_noops'), SPATIAL)
    with pytest.raises(WrongPolicy, match='random weights'):
        check_policy(Policy(loaded()), SPATIAL)
    slow = replace(loaded().config, control_hz=5.0)
    with pytest.raises(WrongPolicy, match='control_hz 5.0, LIBERO wants 20.0'):
        check_policy(Policy(replace(loaded(), config=slow)), SPATIAL)

    scales = policy_that(0.0, 'libero_goal_no_noops').loaded.statistics
    save_policy_model(tmp_path, loaded().model, default_tokenizer(), scales)
    with pytest.raises(CheckpointError, match=r"no key 'libero_spatial'.*libero_goal_no_noops"):
        build_policy(str(tmp_path), device='cpu', unnorm_key=SPATIAL.name)
    goal = build_policy(str(tmp_path), device='cpu', unnorm_key=SUITES['goal'].name)
    check_policy(goal, SUITES['goal'])


def test_the_command_plays_a_suite_and_goes_on(package, tmp_path, capsys, monkeypatch):
    """Real checkpoint folder, the fake package: a table over the tasks, nothing played twice."""
    policy = policy_that(gripper=0.0)
    folder = tmp_path / 'checkpoint'
    entry = policy.loaded.statistics
    save_policy_model(folder, policy.loaded.model, default_tokenizer(), entry)
    monkeypatch.setitem(SUITES, 'spatial', replace(SPATIAL, tasks=2))
    rows = tmp_path / 'rows.json'
    call = ['eval', '--bed', 'libero', '--suite', 'spatial', '--checkpoint', str(folder)]
    call += ['--pruner', 'specprune', '--episodes', '1', '--work', str(tmp_path / 'work')]
    assert main([*call, '--device', 'cpu', '--json', str(rows)]) == 0
    report = json.loads(rows.read_text())
    over_all = [row for row in report['rows'] if row['task'] == 'all']
    assert [row['pruner'] for row in over_all][:2] == ['dense', 'specprune']
    assert all(row['episodes'] == row['successes'] == 2 for row in over_all)
    assert len(made()) == 2 and report['suite'] == 'libero_spatial'
    assert main([*call, '--device', 'cpu']) == 0
    assert len(made()) == 2
    assert main(call[:5]) == 1 and '--checkpoint: want the folder' in capsys.readouterr().err


def test_the_command_says_what_is_missing(capsys):
    try:
        check_libero()
    except MissingLibero:
        assert (
            main(['eval', '--bed', 'libero', '--checkpoint', 'somewhere', '--episodes', '1']) == 1
        )
        assert 'libero' in capsys.readouterr().err.lower()
    else:
        pytest.skip('LIBERO is installed here')
