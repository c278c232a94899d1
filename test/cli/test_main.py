"""Every command file can be reached, and help needs neither ROS nor a model."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specprune_ros import __version__
from specprune_ros.cli import main as cli
from specprune_ros.cli.output import working


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_command_file_is_a_command():
    files = Path(cli.__file__).parent.glob('*.py')
    commands = {file.stem for file in files if 'def add_parser' in file.read_text()}
    assert commands == set(cli.COMMANDS)


@pytest.mark.parametrize('command', cli.COMMANDS)
def test_help_says_what_a_command_does(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, '--help'])
    assert ended.value.code == 0
    assert f'specprune {command}' in capsys.readouterr().out


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(['--version'])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f'specprune {__version__}\n'


def test_a_shell_completes_commands_and_options(tmp_path):
    """Over argcomplete's protocol, as bash asks."""
    for line, want in (('specprune ev', 'eval'), ('specprune eval --report', '--report-only')):
        out = tmp_path / 'answers'
        environment = {**os.environ, '_ARGCOMPLETE': '1', 'COMP_LINE': line, 'COMP_TYPE': '9',
                       'COMP_POINT': str(len(line)), '_ARGCOMPLETE_STDOUT_FILENAME': str(out),
                       '_ARGCOMPLETE_IFS': '\n'}  # fmt: skip
        script = Path(__file__).parents[2] / 'scripts' / 'specprune'
        subprocess.run([sys.executable, script], env=environment, timeout=100)
        assert want in out.read_text().split()


def test_every_command_writes_json():
    (commands,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    lacking = [
        name
        for name, parser in commands.choices.items()
        if '--json' not in parser._option_string_actions
    ]
    assert not lacking


def test_what_pip_did_not_bring_is_named_without_a_traceback():
    """As after `pip install .` in a bare environment: no ROS, no simulator."""
    code = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('rclpy', 'mujoco', 'viser') or name.endswith('_msgs'):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Absent())
from specprune_ros.cli.main import main
print([main(words) for words in (['demo'], ['replay', 'x'], ['eval'], ['params'])])
"""
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=110
    )
    assert done.stdout.strip() == '[1, 1, 1, 1]', done.stderr
    demo, replay, evaluate, params = done.stderr.strip().splitlines()
    for line, command in ((demo, 'demo'), (replay, 'replay'), (params, 'params')):
        assert line.startswith(f'specprune {command}: needs rclpy: ROS 2') and 'make setup' in line
    assert evaluate.startswith('specprune eval: needs mujoco: pip install specprune_ros[sim]')


def test_long_work_says_what_it_does(capsys):
    with working('reading', patience=0.0):
        wait_until(lambda: 'reading ...' in capsys.readouterr().err, 30)
    with working('not said', patience=60.0):
        pass
    assert capsys.readouterr().err == ''


def test_view_passes_its_options_on(monkeypatch, tmp_path):
    view = pytest.importorskip('specprune_ros.apps.view', reason='needs ROS 2')
    requested = []
    monkeypatch.setattr(view, 'run_view', lambda options: requested.append(options) or 0)
    where = tmp_path / 'deep' / 'view.json'
    assert cli.main(['view', '--port', '9000', '--json', str(where)]) == 0
    assert (requested[0].port, requested[0].bag) == (9000, None)
    requested[0].opened('http://127.0.0.1:9001')
    assert json.loads(where.read_text())['url'] == 'http://127.0.0.1:9001'


def test_parameters_as_data(tmp_path, capsys):
    pytest.importorskip('rclpy', reason='needs ROS 2')
    assert cli.main(['params', '--json', str(tmp_path / 'p.json')]) == 0
    found = {p['name']: p for p in json.loads((tmp_path / 'p.json').read_text())}
    assert found['pruning.alpha']['low'] < found['pruning.alpha']['default']
    assert 'pruning.alpha' in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(['dance'])
    assert ended.value.code == 2
    assert 'dance' in capsys.readouterr().err


def test_an_instruction_goes_to_the_arm_of_a_namespace(monkeypatch):
    module = pytest.importorskip('specprune_ros.apps.say', reason='needs ROS 2')
    topics = []
    monkeypatch.setattr(module, 'say', lambda text, topic: topics.append(topic) or True)
    for arguments in ([], ['--namespace', 'left'], ['--namespace', 'left', '--topic', '/mine']):
        assert cli.main(['say', 'lift', *arguments]) == 0
    assert topics == ['/specprune_node/instruction', '/left/specprune_node/instruction', '/mine']


@pytest.mark.ros
@pytest.mark.real_time
def test_an_empty_domain_is_domain_0(tmp_path):
    """As ROS takes it, which publishes only on this machine here."""
    report = tmp_path / 'said.json'
    command = [sys.executable, '-m', 'specprune_ros.cli.main', 'say', 'hello']
    done = subprocess.run(
        [*command, '--topic', '/nobody/listens_here', '--json', str(report)],
        env={**os.environ, 'ROS_DOMAIN_ID': '', 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and 'in ROS domain 0' in done.stdout, done.stderr
    assert json.loads(report.read_text())['domain'] == 0
