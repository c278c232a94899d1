"""``docs/how-to/scale.md`` names commands and options there are, and recorded numbers."""

import re
import runpy
import shlex
from pathlib import Path

from specprune_ros.cli.main import parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs/how-to/scale.md').read_text()


def test_its_numbers_are_the_recorded_ones():
    # Made anew by: python benchmarks/serving.py parity, and arms; then its markdown().
    benchmark = runpy.run_path(str(ROOT / 'benchmarks/serving.py'))
    assert benchmark['markdown']() in PAGE


def test_its_commands_are_understood():
    commands = re.findall(r'^(specprune [^\n#]*)|`(specprune [^`]*)`', PAGE, re.M)
    found = [shlex.split(one or other)[1:] for one, other in commands]
    for words in found:
        if words[-1] == '--param':
            words.append('alpha=0.5')
        parser().parse_args(words)
    assert ['serve'] in found and ['eval', '--ray', 'auto'] in found


def test_every_option_of_the_server_that_it_names_exists():
    help_text = parser()._subparsers._group_actions[0].choices['serve'].format_help()
    named = set(re.findall(r'`(--[a-z-]+)', PAGE)) - {'--args', '--ray'}
    assert named
    assert [option for option in named if option not in help_text] == []
