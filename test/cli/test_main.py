"""Every command file can be reached, and help needs neither ROS nor a model."""

from pathlib import Path

import pytest

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


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(['dance'])
    assert ended.value.code == 2
    assert 'dance' in capsys.readouterr().err
