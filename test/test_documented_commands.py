"""Every command that README and docs show works as it stands there, through the same entry.

``RUN`` maps a documented line to how it is run here: as it stands, or shortened by further
arguments, with placeholders (a user's folder) replaced by real ones. Lines for ROS's own tools are
checked against the launch files, executables, parameters, topics and services that exist; the
commands of other projects are listed by name.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from topic_names import known

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md')))
WEIGHTS = ROOT / 'specprune_ros' / 'sim' / 'weights'
RECORDING = ROOT / 'specprune_ros' / 'sim' / 'recording'
EXAMPLE = ROOT / 'docs' / 'examples'

# Programs of other projects, and the shell's own words.
BLOCK = r'^```(?:bash|sh|console)?\n(.*?)^```'
OTHERS = (
    'apt', 'apt-get', 'cd', 'colcon', 'cp', 'curl', 'docker', 'done', 'echo', 'export', 'for',
    'git', 'hf', 'mkdir', 'openssl', 'pip', 'python3 -m venv', 'ray', 'rosdep', 'serve', 'source',
    'sudo', 'uv', 'vla-eval', '.',
)  # fmt: skip
# A documented `specprune` line -> further arguments that shorten it. A line that is not here must
# be understood by the command's own parser.
RUN = {
    'specprune bench': '--model tiny --repeats 1 --no-stock --device cpu',
    'specprune bench --model shipped': '--repeats 1 --no-stock --device cpu',
    'specprune bench --pruner all --param alpha=0.6': '--model tiny --repeats 1 --no-stock '
    '--device cpu',
    'specprune inspect FOLDER': '',
    'specprune verify FOLDER': '--device cpu --packs none',
    'specprune eval': '--episodes 1 --families move --pruner specprune --processes 1 --work work '
    '--deviation-episodes 0',
}  # fmt: skip
# These take long; test/bench, test/models and test/sim run the same commands by default.
ELSEWHERE = {
    'specprune bench --pruner all --param alpha=0.6',
    'specprune inspect FOLDER',
    'specprune eval',
}
PLACES = {'FOLDER': str(WEIGHTS), 'oft-spatial': str(WEIGHTS), 'my_recording': str(RECORDING)}


def documented():
    """(page, line) of every command in a code block, continuation lines joined, comments left."""
    found = []
    for page in PAGES:
        for block in re.findall(
            r'^```(?:bash|sh|console)?\n(.*?)^```', page.read_text(), re.S | re.M
        ):
            for line in re.sub(r'\\\n\s*', ' ', block).splitlines():
                line = re.sub(r'\s+', ' ', re.split(r'\s+#', line)[0]).strip()
                if line and not line.startswith('#') and is_command(line):
                    found.append((page.relative_to(ROOT).as_posix(), line))
    return found


def is_command(line):
    first = line.split()[0]
    known = ('specprune', '.venv/bin/specprune', 'ros2', 'make', 'python', 'python3')
    return first in known or any(line.startswith(f'{other} ') for other in OTHERS)


LINES = sorted({line for _, line in documented()})
OURS = [line for line in LINES if re.match(r'(\.venv/bin/)?specprune ', f'{line} ')]


def test_the_documents_are_read():
    pages = {page for page, _ in documented()}
    assert {'README.md', 'CONTRIBUTING.md'} <= pages and len(LINES) > 40


@pytest.mark.parametrize(
    'line',
    [pytest.param(x, marks=pytest.mark.slow if x in ELSEWHERE else ()) for x in sorted(RUN)],
)
def test_a_documented_command_runs(line, tmp_path):
    assert line in LINES, 'no document shows it any more: take it out of RUN'
    words = [PLACES.get(word, word) for word in shlex.split(f'{line} {RUN[line]}')]
    program = [sys.executable, str(ROOT / 'scripts' / words[0])]
    if words[0] != 'specprune':
        program = [sys.executable, str(ROOT / words[1])]
        words = words[1:]
    done = subprocess.run(
        [*program, *words[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=115
    )
    assert done.returncode == 0, f'{done.stdout[-1500:]}\n{done.stderr[-1500:]}'
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('line', [line for line in OURS if line not in RUN])
def test_a_documented_command_is_understood(line):
    """Its parser takes every word of it."""
    from specprune_ros.cli.main import parser

    words = shlex.split(re.sub(r' [|>&].*$', '', line.replace('...', 'x')))
    try:
        parser().parse_args(words[1:])
    except SystemExit as error:
        assert error.code == 0, line


@pytest.mark.parametrize('line', [line for line in LINES if line.startswith('python')])
def test_a_documented_script_exists_and_explains_itself(line):
    words = shlex.split(line)
    if words[1] in ('-m', '-c'):
        return
    script = ROOT / words[1]
    assert script.is_file(), line
    text = script.read_text()
    for option in (word.split('=')[0] for word in words[2:] if word.startswith('--')):
        assert f"'{option}'" in text or option == '--json', f'{line}: {option}'


@pytest.mark.parametrize('line', [line for line in LINES if line.startswith('make')])
def test_a_documented_target_exists(line):
    targets = re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.M)
    words = [word for word in shlex.split(line)[1:] if '=' not in word]
    assert set(words) <= set(targets)


def launch_arguments(name):
    """Names a launch file declares: those of the package, less what it fixes, and its own."""
    from specprune_ros.apps.launch_arguments import ARGUMENTS

    text = (ROOT / 'launch' / name).read_text()
    fixed = re.search(r'^FIXED = \{(.*?)\}', text, re.S | re.M)
    own = set(re.findall(r"'(\w+)': Argument\(", text)) | set(re.findall(r'(\w+)=\1\)', text))
    return ARGUMENTS.keys() - set(re.findall(r"'(\w+)':", fixed[1] if fixed else '')) | own


ROS2 = [line for line in LINES if line.startswith('ros2')]


@pytest.mark.parametrize('line', ROS2)
@pytest.mark.ros
def test_a_documented_ros2_command_names_what_exists(line):
    from specprune_ros.nodes.policy_node import parameter_tables

    words = shlex.split(line)
    parameters = {spec.name for spec in parameter_tables.all_settings()}
    if words[1] == 'launch' and words[2] == 'specprune_ros':
        given = {word.split(':=')[0] for word in words[4:] if ':=' in word}
        assert given <= launch_arguments(words[3]), line
    elif words[1] == 'run' and words[2] == 'specprune_ros':
        assert (ROOT / 'scripts' / words[3]).is_file()
        if words[3] == 'specprune_node':
            values = [
                word.split(':=')[0] for a, word in zip(words, words[1:], strict=False) if a == '-p'
            ]
            assert set(values) <= parameters, line
    elif words[1] == 'param':
        assert words[4] in parameters, line
    elif words[1] in ('topic', 'service') and len(words) > 3:
        ours = [
            w
            for w in words[3:]
            if re.match(r'/(specprune_node|chunk_executor|sim_arm|diagnostics)', w)
        ]
        for name in ours:
            assert name in known() or re.match(r'/chunk_executor/dry_run/\w+$', name), name
