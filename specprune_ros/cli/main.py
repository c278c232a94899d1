"""``specprune``: the command line. Each command lives in a file of its own beside this one."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

import argcomplete

from specprune_ros import __version__

# Order of the help text. A command's file has add_parser(subparsers) and run(args) -> exit status.
COMMANDS = (
    'demo',
    'doctor',
    'jog',
    'say',
    'view',
    'replay',
    'params',
    'bench',
    'explain',
    'inspect',
    'describe',
    'verify',
    'train',
    'eval',
    'serve',
)

EXIT_STATUS = """\
exit status: 0 done; 1 it could not be done, or what was checked is not right (the reason is
printed); 2 the command line is wrong (jog, replay, verify, view: also a file that it names); 130
interrupted by Ctrl-C."""

WITHOUT_ROS = (
    'from a checkout: `make setup`, then `. scripts/env.sh` (no ROS needed), or on a ROS host '
    '`colcon build` and `source install/setup.bash` (docs/how-to/install.md)'
)
# What a module belongs to that pip alone may not have brought, and how to get it.
MISSING = {
    'specprune_ros.msg': f'the messages of this package, which colcon builds; {WITHOUT_ROS}',
    'mujoco': 'pip install specprune_ros[sim]',
    'viser': 'pip install specprune_ros[view]',
    'trimesh': 'pip install specprune_ros[view]',
    'torch': 'pip install torch',
}
OF_ROS = ('rclpy', 'rcl_', 'rosidl_', 'rosgraph_', 'ament_', 'builtin_')

# Commands that run a pruning method, which may come from a file of the user's.
TAKE_PLUGINS = ('bench', 'eval', 'explain', 'params', 'serve')


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog='specprune',
        description='Vision-language-action policies with token pruning, on ROS 2.',
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument('--version', action='version', version=f'specprune {__version__}')
    commands = top.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name in COMMANDS:
        module = import_module(f'specprune_ros.cli.{name}')
        command = module.add_parser(commands)
        command.set_defaults(run=module.run)
        if name in TAKE_PLUGINS:
            command.add_argument(
                '--plugin',
                action='append',
                default=[],
                metavar='FILE',
                help='a Python file that registers a pruning method (docs/how-to/add_a_method.md)',
            )
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns its exit status."""
    understood = parser()
    argcomplete.autocomplete(understood)  # ends here where a shell requests completions
    chosen = understood.parse_args(arguments)
    chosen.words = sys.argv[1:] if arguments is None else arguments
    plugins = getattr(chosen, 'plugin', [])
    if plugins:
        # By the environment, so that worker processes load them as well.
        paths = [str(Path(plugin).resolve()) for plugin in plugins]
        given = os.environ.get('SPECPRUNE_PLUGINS', '')
        os.environ['SPECPRUNE_PLUGINS'] = os.pathsep.join(filter(None, [given, *paths]))
        try:
            import_module('specprune_ros.pruning')
        except ValueError as error:  # PluginError
            print(f'specprune {chosen.command}: {error}', file=sys.stderr)
            return 1
    try:
        return int(chosen.run(chosen))
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except ImportError as error:
        cure = _cure(error.name or '')
        if not cure:
            raise
        print(f'specprune {chosen.command}: needs {error.name}: {cure}', file=sys.stderr)
        return 1


def _cure(module: str) -> str:
    """How to get a module that is not here; empty for one that should be."""
    top = module.partition('.')[0]
    if top.startswith(OF_ROS) or top.endswith(('_msgs', '_srvs')):
        return f'ROS 2; {WITHOUT_ROS}'
    return MISSING.get(module, MISSING.get(top, ''))


if __name__ == '__main__':
    raise SystemExit(main())
