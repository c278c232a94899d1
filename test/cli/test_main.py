"""Every command file can be reached, and help needs neither ROS nor a model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from specprune_ros import __version__
from specprune_ros.cli import main as cli


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


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(['dance'])
    assert ended.value.code == 2
    assert 'dance' in capsys.readouterr().err
