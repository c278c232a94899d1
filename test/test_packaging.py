"""What the package declares, what pip gives, what colcon gives, what setup says when it cannot."""

import ast
import configparser
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
NODES = ('chunk_executor', 'patch_cloud', 'sim_arm', 'specprune_node', 'viewer_node')
# Import name to distribution, where they differ.
IMPORT_OF_KEY = {'python3-pil': 'PIL', 'python3-opencv': 'cv2'}
DISTRIBUTION = {
    'PIL': 'pillow',
    'yaml': 'pyyaml',
    'pinocchio': 'pin',
    'cv2': 'opencv-python-headless',
    'OpenGL': 'pyopengl',
}


def normal(name):
    return re.sub(r'[-_.]+', '-', name).lower()


def requirements(name):
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    names = (re.split(r'[\[<>=]', line)[0] for line in lines if line and line[0] != '#')
    return {normal(name) for name in names}


def constraints():
    lines = (ROOT / 'constraints.txt').read_text().splitlines()
    pairs = [line.split('==') for line in lines if line and not line.startswith('#')]
    return {normal(name): version for name, version in pairs}


def package_xml():
    return ElementTree.parse(ROOT / 'package.xml').getroot()


def declared(tree):
    return {
        element.text
        for kind in ('depend', 'exec_depend', 'build_depend')
        for element in tree.iter(kind)
    }


def imported(folder, base=ROOT / 'specprune_ros'):
    """Top-level names that the modules below ``folder`` import, by module path."""
    for path in sorted((base / folder).rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            for name in names:
                top = name.split('.')[0]
                if top not in sys.stdlib_module_names and top != 'specprune_ros':
                    yield path.relative_to(ROOT), top


# ------------------------------------------------------------------ what it declares


def test_one_version_everywhere():
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    version = setup['metadata']['version']
    assert package_xml().findtext('version') == version
    assert re.search(rf'^{re.escape(version)} ', (ROOT / 'CHANGELOG.rst').read_text(), re.M)
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert citation['version'] == version and citation['cff-version'] == '1.2.0'
    assert {'message', 'title', 'authors'} <= citation.keys()


def test_the_image_is_built_as_a_ros_host_is_set_up():
    """No Docker here: each instruction is one there is, and what it copies and runs exists."""
    text = (ROOT / 'Dockerfile').read_text()
    assert len(text.splitlines()) < 35
    lines = re.sub(r'\\\n\s*', '', re.sub(r'^#.*\n', '', text, flags=re.M)).splitlines()
    steps = [line.split(' ', 1) for line in lines if line.strip()]
    known = {'ARG', 'FROM', 'SHELL', 'RUN', 'WORKDIR', 'COPY', 'ENTRYPOINT', 'CMD'}
    assert {name for name, _ in steps} <= known and steps[1][1].startswith('ros:${ROS_DISTRO}-')
    for name, rest in steps:
        if name in ('SHELL', 'ENTRYPOINT', 'CMD'):
            assert all(isinstance(word, str) for word in json.loads(rest))
        if 'apt-get install' in rest:
            assert '--no-install-recommends' in rest and 'rm -rf /var/lib/apt/lists' in rest
    assert 'make setup' in text and (ROOT / 'scripts/env.sh').exists()
    left = {line.strip('*/') for line in (ROOT / '.dockerignore').read_text().split()}
    assert {'.venv', 'build', 'install'} <= left


def test_placeholders_are_of_one_kind():
    words = re.compile(r'<this repository>|example\.(org|com)|REPOSITORY_URL')
    files = [ROOT / name for name in ('README.md', 'package.xml', 'setup.cfg', 'CITATION.cff')]
    for path in (*files, *(ROOT / 'docs').rglob('*.md')):
        assert not words.search(path.read_text()), path


def test_colcon_accepts_package_xml():
    catkin_pkg = pytest.importorskip('catkin_pkg.package')
    warnings = []
    package = catkin_pkg.parse_package(str(ROOT / 'package.xml'), warnings=warnings)
    assert not warnings
    assert package.get_build_type() == 'ament_cmake'
    assert [group.name for group in package.member_of_groups] == ['rosidl_interface_packages']


@pytest.mark.parametrize(
    'name', ['run', 'sim', 'view', 'test', 'docs', 'build', 'ros', 'ray', 'vla_eval']
)
def test_every_requirement_is_pinned(name):
    missing = requirements(name) - constraints().keys()
    assert not missing, f'pin in constraints.txt: {sorted(missing)}'


def test_installed_is_what_constraints_pin():
    """In the .venv that `make` sets up with wheels, to the last transitive dependency."""
    if Path(sys.prefix) != ROOT / '.venv' or not (ROOT / '.venv/lib/librcl.so').exists():
        pytest.skip('not the .venv of `make setup` with ROS from wheels')
    pins = constraints()
    wrong = {}
    for distribution in importlib.metadata.distributions():
        name, version = normal(distribution.metadata['Name']), distribution.version.split('+')[0]
        if name == 'pip' or 'INSTALLER' not in {str(f.name) for f in distribution.files or ()}:
            continue  # a ROS wheel registers its Python module a second time, without INSTALLER
        if pins.get(name) != version:
            wrong[name] = f'{version} here, {pins.get(name)} in constraints.txt'
    assert not wrong


def test_every_key_of_package_xml_is_in_the_rosdep_index():
    """As scripts/check_rosdep.py recorded it: a package of every supported distribution, or of the
    system.
    """
    record = json.loads((ROOT / 'test/data/rosdep_keys.json').read_text())
    keys = {element.text for element in package_xml() if element.tag.endswith('depend')}
    assert keys == record.keys(), 'run scripts/check_rosdep.py'
    for key, places in record.items():
        assert 'rosdep' in places or places == ['jazzy', 'kilted', 'lyrical'], key


def test_package_xml_depends_on_nothing_unused():
    """Every key is imported, or is a program or plugin named here."""
    named = {
        'rmw_fastrtps_cpp',  # scripts/env.sh
        'rosidl_default_runtime',  # the messages
        'ros2launch',  # ros2 launch
        'ros2bag',  # replay.launch.py
        'rosbag2_storage_mcap',
    }
    names = {top for folder in ('specprune_ros', 'launch') for _, top in imported(folder, ROOT)}
    unused = {
        key
        for key in declared(package_xml()) - named
        if IMPORT_OF_KEY.get(key, key.removeprefix('python3-').removesuffix('-pip')).replace(
            '-', '_'
        )
        not in names
    }
    assert not unused


def test_ci_runs_every_supported_python_and_distribution():
    workflow = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text())
    wheels, ros = (workflow['jobs'][name]['strategy']['matrix'] for name in ('wheels', 'ros'))
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    supported = re.findall(r'Python :: (3\.\d+)', setup['metadata']['classifiers'])
    assert wheels['python'] == supported
    record = json.loads((ROOT / 'test/data/rosdep_keys.json').read_text())
    assert ros['distro'] == record['rclpy']
    targets = re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.M)
    text = (ROOT / '.github/workflows/ci.yml').read_text()
    assert set(re.findall(r'make (\w+)', text)) <= set(targets)


def test_what_is_imported_is_required():
    """By pip for the half without ROS, by package.xml for the messages that nodes use."""
    run = requirements('run')
    known = dict.fromkeys(('pruning', 'models', 'policy', 'robot', 'cli'), run)
    extras = requirements('ray') | requirements('vla_eval')
    known['sim'] = run | requirements('sim') | extras
    known['serving'] = run | extras
    known['nodes'] = (
        run | requirements('view') | {normal(name) for name in declared(package_xml())}
    )
    missing = [
        f'{path}: {top}'
        for folder, names in known.items()
        for path, top in imported(folder)
        if normal(DISTRIBUTION.get(top, top)) not in names
    ]
    assert not missing
    assert any(top == 'rclpy' for _, top in imported('nodes'))


def test_every_node_has_an_executable_and_the_other_way_round():
    scripts = {
        path.name for path in (ROOT / 'scripts').iterdir() if path.is_file() and not path.suffix
    }
    assert scripts == {*NODES, 'specprune'}
    cmake = (ROOT / 'CMakeLists.txt').read_text()
    for name in scripts:
        assert os.access(ROOT / 'scripts' / name, os.X_OK)
        assert f'scripts/{name}' in cmake


# ------------------------------------------------------------------ what pip gives


def test_pip_builds_the_half_without_ros(tmp_path):
    copy = tmp_path / 'source'  # setuptools writes build/ and *.egg-info beside setup.py
    copy.mkdir()
    for name in ('specprune_ros', 'config', 'requirements'):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns('__pycache__', '*.pyc')
        )
    for name in ('setup.py', 'setup.cfg', 'LICENSE', 'README.md'):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', 'wheel', '-qq']
    done = subprocess.run(
        [*pip, '--no-deps', '--no-build-isolation', '-w', str(tmp_path), str(copy)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = {name.split('/')[0] for name in names if '.dist-info/' in name}
        metadata = archive.read(f'{info}/METADATA').decode()
        points = archive.read(f'{info}/entry_points.txt').decode()
    data = {
        str(path.relative_to(ROOT))
        for path in (ROOT / 'specprune_ros').rglob('*')
        if path.is_file() and path.suffix not in ('.pyc',)
    }
    assert data <= names, f'not packaged: {sorted(data - names)}'
    assert not any(name.startswith('test') for name in names)
    assert 'specprune = specprune_ros.cli.main:main' in points
    required = set(re.findall(r'^Requires-Dist: ([A-Za-z0-9_.-]+)(?:[<>=;].*)?$', metadata, re.M))
    assert requirements('run') <= {normal(name) for name in required}
    assert not any(normal(name).startswith('ros-') for name in required)


# ------------------------------------------------------------------ what colcon gives


def environment_of(prefix):
    """This environment with our package taken from ``prefix`` alone, not from the checkout."""
    (modules,) = prefix.glob('specprune_ros/**/python3*/*-packages/specprune_ros')
    theirs = [
        path
        for path in os.environ['LD_LIBRARY_PATH'].split(os.pathsep)
        if not Path(path).is_relative_to(ROOT / 'install')
    ]
    return {
        **os.environ,
        'PYTHONPATH': str(modules.parent),
        'LD_LIBRARY_PATH': os.pathsep.join([str(prefix / 'specprune_ros/lib'), *theirs]),
    }


def import_messages(environment, cwd):
    """Import messages and nodes in a fresh process; returns where each came from."""
    code = (
        'import specprune_ros.msg, specprune_ros.nodes as nodes, specprune_ros.pruning as pruning;'
        'specprune_ros.msg.ActionChunk.__import_type_support__();'
        'print(specprune_ros.msg.__file__, nodes.__file__, pruning.__file__, sep="\\n")'
    )
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Path(line) for line in done.stdout.splitlines()]


@pytest.mark.ros
def test_imports_from_the_checkout_take_python_from_it_and_messages_from_install():
    messages, nodes, pruning = import_messages(dict(os.environ), ROOT)
    assert messages.is_relative_to(ROOT / 'install')
    assert nodes.is_relative_to(ROOT / 'specprune_ros')
    assert pruning.is_relative_to(ROOT / 'specprune_ros')


@pytest.mark.ros
def test_imports_from_the_linked_install(tmp_path):
    found = import_messages(environment_of(ROOT / 'install'), tmp_path)
    assert all(path.is_relative_to(ROOT / 'install') for path in found)


def colcon_build(where, *options, testing='OFF'):
    done = subprocess.run(
        ['colcon', '--log-base', where / 'log', 'build', '--base-paths', ROOT, *options]
        + ['--build-base', where / 'build', '--install-base', where / 'install', '--cmake-args']
        + [f'-DBUILD_TESTING={testing}', f'-DPython3_EXECUTABLE={sys.executable}'],
        cwd=where,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return where / 'install'


@pytest.mark.slow
@pytest.mark.ros
@pytest.mark.timeout(600)
def test_colcon_test_runs_pytest_on_the_sources(tmp_path):
    """Of the whole suite one file, whose result `colcon test-result` finds."""
    colcon_build(tmp_path, testing='ON')
    where = ['--build-base', tmp_path / 'build']
    done = subprocess.run(
        ['colcon', '--log-base', tmp_path / 'log', 'test', '--base-paths', ROOT, *where]
        + ['--install-base', tmp_path / 'install', '--return-code-on-test-failure'],
        cwd=tmp_path,
        env={**os.environ, 'PYTEST_ADDOPTS': 'test/test_public_api.py'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        ['colcon', 'test-result', '--test-result-base', tmp_path / 'build', '--verbose'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    summary = re.search(r'Summary: (\d+) tests, 0 errors, 0 failures', done.stdout)
    assert summary and int(summary[1]) > 3, done.stdout


@pytest.mark.slow
@pytest.mark.ros
def test_a_plain_build_needs_no_checkout_and_its_executables_start(tmp_path):
    """Without --symlink-install nothing may point back; each node runs by its installed script."""
    prefix = colcon_build(tmp_path)
    package = prefix / 'specprune_ros'
    links = [path for path in package.rglob('*') if path.is_symlink()]
    assert not links
    environment = environment_of(prefix)
    found = import_messages(environment, tmp_path)
    assert all(path.is_relative_to(prefix) for path in found)
    for name in ('config', 'launch'):
        installed = {
            path.relative_to(package / 'share/specprune_ros')
            for path in (package / 'share/specprune_ros' / name).rglob('*')
            if path.is_file()
        }
        assert installed == {
            path.relative_to(ROOT)
            for path in (ROOT / name).rglob('*')
            if path.is_file() and path.suffix != '.pyc'
        }
    # An unknown ROS argument makes rclpy refuse to start, after our main() has been reached.
    running = [
        subprocess.Popen(
            [package / 'lib/specprune_ros' / name, '--ros-args', '--no-such-option'],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in NODES
    ]
    for name, process in zip(NODES, running, strict=True):
        try:
            _, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            raise
        assert process.returncode != 0, name
        assert '--no-such-option' in errors, errors


# ------------------------------------------------------------------ what setup says when it cannot


def run_setup(tmp_path, *, commands, **environment):
    """Run scripts/setup.sh in a bare checkout, as somebody who is not root, with few commands."""
    checkout = tmp_path / 'checkout'
    (checkout / 'scripts').mkdir(parents=True)
    shutil.copy(ROOT / 'scripts/setup.sh', checkout / 'scripts')
    shutil.copy(ROOT / 'Makefile', checkout)
    path = tmp_path / 'bin'
    path.mkdir()
    for name in ('bash', 'dirname', 'cat', 'mkdir', 'rm', 'sha256sum', 'cut', *commands):
        (path / name).symlink_to(shutil.which(name))
    (path / 'id').write_text('#!/bin/sh\necho 1000\n')
    (path / 'id').chmod(0o755)
    return subprocess.run(
        [checkout / 'scripts/setup.sh'],
        env={'PATH': str(path), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_setup_names_a_missing_python(tmp_path):
    done = run_setup(tmp_path, commands=())
    assert done.returncode == 1
    assert 'No Python 3.11 to 3.14' in done.stderr
    assert 'sudo apt-get install python3 python3-venv' in done.stderr


def test_setup_refuses_a_python_without_wheels(tmp_path):
    old = tmp_path / 'python3.9'
    old.write_text('#!/bin/sh\nexit 1\n')
    old.chmod(0o755)
    done = run_setup(tmp_path, commands=(), PYTHON=str(old))
    assert done.returncode == 1
    assert f'PYTHON={old} is not Python 3.11 to 3.14' in done.stderr


def test_setup_names_a_missing_compiler_before_it_downloads_anything(tmp_path):
    done = run_setup(tmp_path, commands=(), PYTHON=sys._base_executable)
    assert done.returncode == 1
    assert 'sudo apt-get install gcc g++' in done.stderr
    assert not (tmp_path / 'checkout/.venv').exists()


def test_setup_forgets_what_a_killed_pip_left_unfinished(tmp_path):
    """Without the record of its files a package counts as installed for the next pip."""
    packages = tmp_path / 'lib/python3.11/site-packages'
    for name, file in (('whole', 'RECORD'), ('half', 'METADATA')):
        (packages / f'{name}-1.0.dist-info').mkdir(parents=True)
        (packages / f'{name}-1.0.dist-info' / file).touch()
    text = (ROOT / 'scripts/setup.sh').read_text()
    (function,) = re.findall(r'^forget_unfinished\(\).*?^}', text, re.M | re.S)
    script = f'set -eu\nvenv={tmp_path}\n{function}\nforget_unfinished'
    subprocess.run(['bash', '-c', script], check=True)
    assert [path.name for path in packages.iterdir()] == ['whole-1.0.dist-info']


def test_without_pytorch_none_is_required():
    """``torch>=2.10`` passed a pattern for the bare name: TORCH=none installed 3 GB."""
    (pattern,) = re.findall(r"grep -hvE '([^']+)'", (ROOT / 'scripts/setup.sh').read_text())
    lines = [
        line
        for file in ('run', 'test', 'sim')
        for line in (ROOT / 'requirements' / f'{file}.txt').read_text().splitlines()
    ]
    left = [line for line in lines if not re.search(pattern, line)]
    taken = {re.match('[a-z0-9-]*', line).group() for line in lines if line not in left}
    assert taken == {'torch', 'transformers'} and 'numpy' in left
    assert not re.search(pattern, 'torch-fidelity>=1') and re.search(pattern, 'torch==2.13.0')
