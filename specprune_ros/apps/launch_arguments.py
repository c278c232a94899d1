"""The arguments of the launch files, and their check before any node starts.

Imports neither launch nor rclpy, so it is tested where there is no ROS host.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from specprune_ros.bounded_files import read_yaml
from specprune_ros.nodes.common.remapping import (
    ALLOWED,
    REFUSED,
    TRANSPORTS,
    find_profile,
    image_topic,
    policy_parameters,
    policy_remappings,
    profile_arguments,
    refuse_random_weights,
    share,
)
from specprune_ros.policy.input_limits import MAX_INSTRUCTION
from specprune_ros.robot.profile import Profile, load

POLICY, EXECUTOR, VIEWER, ARM = 'specprune_node', 'chunk_executor', 'viewer_node', 'sim_arm'
ROBOTS = sorted(path.stem for path in (share() / 'config' / 'robots').glob('*.yaml'))
SWITCH = ('true', 'false')
# What becomes of the launch when a node cannot start or dies.
STOP, SHUTDOWN, KEEP = 'stop', 'shutdown', 'keep'
_NAME = '[A-Za-z_][A-Za-z0-9_]*'


class ArgumentError(ValueError):
    """Arguments that cannot be used: each with its name and what would be right."""


@dataclass(frozen=True)
class Argument:
    """One launch argument; ``default`` of ``None`` means that it has to be given."""

    description: str
    default: str | None = ''
    choices: tuple[str, ...] | None = None


ARGUMENTS: dict[str, Argument] = {
    'robot': Argument(
        f'The arm: a profile that comes with the package ({", ".join(ROBOTS)}) or the path of '
        'your own YAML file.',
        'sim_arm',
    ),
    'robot_sn': Argument(
        "The robot's serial number, e.g. Rizon4-123456, for profiles with {robot_sn}."
    ),
    'checkpoint': Argument(
        'Folder of the model. Empty: model.path or model.server of params_file, or else, with the '
        'simulated arm, a tiny model with random weights.'
    ),
    'random_weights': Argument(
        'Whether a model with random weights may drive this arm. The simulated one allows it.',
        REFUSED,
        (REFUSED, ALLOWED),
    ),
    'instruction': Argument(
        'Instruction to begin with. Empty: that of params_file, or wait for the topic '
        '~/instruction.'
    ),
    'dry_run': Argument(
        'true: the executor publishes on ~/dry_run/... what it would send, and sends nothing to '
        'the arm.',
        'false',
        SWITCH,
    ),
    'params_file': Argument(
        'Parameters of the nodes; config/specprune.yaml is one with every default. What the robot '
        'profile says comes before it. Empty: defaults.'
    ),
    'image_transport': Argument(
        "Images: as the profile says, or its topics' other form (<topic>/compressed).",
        'profile',
        TRANSPORTS,
    ),
    'executor': Argument('false: only the policy, for an executor of your own.', 'true', SWITCH),
    'view': Argument(
        'true: a page in the browser that shows and steers the nodes (docs/how-to/view.md); the '
        'log says where.',
        'false',
        SWITCH,
    ),
    'view_host': Argument(
        'Interface of the page; any but the loopback one needs the token of the log.', '127.0.0.1'
    ),
    'view_port': Argument('First port the page tries, 1 to 65535.', '8080'),
    'namespace': Argument(
        'Namespace of the nodes, and what {namespace} in the profile stands for.'
    ),
    'enclave': Argument(
        'SROS2: the enclave above those of the nodes, e.g. /specprune for /specprune/policy, '
        '/specprune/executor and so on (docs/explanation/security.md). Empty: none.'
    ),
    'use_sim_time': Argument(
        'true: time comes from /clock (recordings, simulators).', 'false', SWITCH
    ),
    'log_level': Argument(
        "Least severe message of the nodes' own loggers that is shown.",
        'info',
        ('debug', 'info', 'warn', 'error', 'fatal'),
    ),
    'autostart': Argument(
        'true: configure and activate the nodes. false: leave that to a lifecycle manager.',
        'true',
        SWITCH,
    ),
    'on_failure': Argument(
        'stop: when the executor dies or a node cannot start, end this launch with an error; when '
        'the policy dies, the executor stops the arm and goes on reporting. shutdown: end this '
        'launch whichever dies. keep: keep what still runs.',
        STOP,
        (STOP, SHUTDOWN, KEEP),
    ),
}


@dataclass(frozen=True)
class Arm:
    """What the nodes of one arm are started with. ``namespace`` is absolute, empty at the root."""

    given: Mapping[str, str]
    namespace: str
    profile_file: Path
    remappings: Mapping[str, str]
    parameters: Mapping[str, Any]
    params_files: tuple[str, ...]
    remarks: tuple[str, ...]

    def on(self, switch: str) -> bool:
        """Whether an argument of true or false is true."""
        return self.given[switch] == 'true'

    def page_parameters(self) -> dict[str, Any]:
        """Parameters of the page that the executor does not have."""
        return {
            'executor': f'{self.namespace}/{EXECUTOR}',
            'image_transport': self.given['image_transport'],
            'host': self.given['view_host'],
            'port': int(self.given['view_port']),
        }


def check(given: Mapping[str, str], outer: str = '') -> Arm:
    """Check every argument of :data:`ARGUMENTS`; those that are not given have their defaults.

    ``outer`` is the namespace that an including launch file has pushed. Raises
    :class:`ArgumentError` with all that is wrong.
    """
    values = {name: argument.default or '' for name, argument in ARGUMENTS.items()}
    values |= {name: str(given[name]) for name in ARGUMENTS if name in given}
    problems: list[str] = []

    def attempt(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            return None

    for name, argument in ARGUMENTS.items():
        attempt(_choice, name, values[name], argument.choices)
    space = attempt(absolute, values['namespace'], outer) or ''
    attempt(_enclave, values['enclave'])
    attempt(_instruction, values['instruction'])
    attempt(whole_number, 'view_port', values['view_port'], 1, 65535)
    values['checkpoint'] = attempt(_folder, 'checkpoint', values['checkpoint']) or ''
    profile = attempt(read_profile, values['robot'], values['robot_sn'], space)
    remappings, parameters = wire(profile[0], values['image_transport']) if profile else ({}, {})
    files, remarks, in_file = (), (), {}
    if values['params_file']:
        path = attempt(_file, 'params_file', values['params_file'])
        tree = attempt(_parameter_tree, path) if path else None
        if tree is not None:
            files, remarks = (str(path),), tuple(remarks_on(tree, path, space, parameters))
            for pattern, said in sections(tree):
                in_file |= said if applies(pattern, f'{space}/{POLICY}') else {}
    if values['random_weights'] == ALLOWED:
        parameters['model.random_weights'] = ALLOWED
    if values['checkpoint']:
        parameters['model.path'] = values['checkpoint']
    if values['instruction']:
        parameters['instruction'] = values['instruction']
    if not problems:
        attempt(refuse_random_weights, {**in_file, **parameters})
    if problems:
        raise ArgumentError('\n'.join(problems))
    return Arm(values, space, profile[1], remappings, parameters, files, remarks)


def check_arms(path: Path, shared: Mapping[str, str], outer: str = '') -> list[Arm]:
    """The arms of a file that names, for each namespace, arguments of its own.

    ``shared`` are those that every arm has where the file says nothing else. Raises
    :class:`ArgumentError` for the whole file, so that no arm starts beside one that cannot.
    """
    tree = read_yaml(path)
    if not isinstance(tree, Mapping) or not tree:
        raise ArgumentError(f'{path}: namespaces are needed, each with the arguments of its arm')
    arms: list[Arm] = []
    problems = []
    for name, own in tree.items():
        own = {} if own is None else own
        if not isinstance(own, Mapping):
            problems.append(f'{path}: {name}: arguments and their values are needed')
            continue
        known = ARGUMENTS.keys() - {'namespace'}
        unknown = [str(key) for key in own if key not in known]
        if unknown:
            problems.append(
                f'{path}: {name}: {unknown[0]} is no argument; known are '
                f'{", ".join(sorted(known))}'
            )
            continue
        values = {key: _text(value) for key, value in own.items()}
        try:
            arms.append(check({**shared, **values, 'namespace': str(name)}, outer))
        except ArgumentError as error:
            problems += [f'{path}: {name}: {line}' for line in str(error).splitlines()]
    spaces = [arm.namespace for arm in arms]
    problems += [
        f'{path}: two arms in {s or "/"}' for s in sorted(set(spaces)) if spaces.count(s) > 1
    ]
    if problems:
        raise ArgumentError('\n'.join(problems))
    return arms


def read_profile(robot: str, serial: str, namespace: str = '') -> tuple[Profile, Path]:
    """The checked profile and its file. Raises ``ProfileError`` saying what would be right."""
    path = find_profile(robot).absolute()
    return load(path, profile_arguments(serial, namespace)), path


def wire(profile: Profile, transport: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The policy's remappings and parameters on this arm, images in the form requested."""
    remappings, parameters = policy_remappings(profile), policy_parameters(profile)
    if transport not in ('profile', parameters['image_transport']):
        parameters['image_transport'] = transport
        for private, topic in remappings.items():
            if private.startswith('~/image/'):
                remappings[private] = image_topic(topic, transport)
    return remappings, parameters


# One argument.


def absolute(namespace: str, outer: str = '') -> str:
    """A namespace from the root on, without a slash at its end; empty at the root."""
    if not re.fullmatch(rf'/?({_NAME}(/{_NAME})*)?/?', namespace):
        raise ArgumentError(
            f"namespace:='{namespace}': no ROS namespace (parts of letters, digits and _ that "
            'begin with no digit, between slashes)'
        )
    whole = namespace if namespace.startswith('/') else f'{outer}/{namespace}'
    return ''.join(f'/{part}' for part in whole.split('/') if part)


def whole_number(name: str, text: str, low: int, high: int | None = None) -> int:
    """An argument that is a whole number from ``low`` to ``high``."""
    if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
        upper = f' to {high}' if high is not None else ' or more'
        raise ArgumentError(f"{name}:='{text}': a whole number, {low}{upper}, is needed")
    return int(text)


def rate(text: str) -> float:
    """The argument ``rate``: above 0 and finite."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float('inf'):
        raise ArgumentError(f"rate:='{text}': a number above 0 is needed")
    return value


def _choice(name: str, text: str, choices: tuple[str, ...] | None) -> None:
    if choices and text not in choices:
        raise ArgumentError(f"{name}:='{text}': one of {', '.join(choices)} is needed")


def _enclave(text: str) -> None:
    if text and not re.fullmatch(rf'(/{_NAME})+', text):
        raise ArgumentError(f"enclave:='{text}': a path such as /specprune is needed")


def _instruction(text: str) -> None:
    if len(text) > MAX_INSTRUCTION:
        raise ArgumentError(
            f'instruction has {len(text)} characters; at most {MAX_INSTRUCTION} are read'
        )


def _folder(name: str, text: str) -> str:
    if not text:
        return ''
    path = Path(text).expanduser().absolute()
    if not path.is_dir():
        raise ArgumentError(f"{name}:='{text}': no folder {path}")
    return str(path)


def _file(name: str, text: str) -> Path:
    path = Path(text).expanduser().absolute()
    if not path.is_file():
        raise ArgumentError(f"{name}:='{text}': no file {path}")
    return path


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# What a parameter file says that would surprise.


def remarks_on(
    tree: Mapping[str, Any], file: Path, space: str, profile: Mapping[str, Any]
) -> list[str]:
    """Name values that the profile overrules, and a file that speaks of other nodes."""
    found = list(sections(tree))
    mine = [values for pattern, values in found if applies(pattern, f'{space}/{POLICY}')]
    out = []
    if not any(applies(p, f'{space}/{n}') for p, _ in found for n in (POLICY, EXECUTOR)):
        names = ', '.join(pattern for pattern, _ in found) or 'none'
        out.append(
            f'{file}: no section for {space}/{POLICY} or {space}/{EXECUTOR} (it has {names}): '
            'none of its values is used; /** stands for every node'
        )
    overruled = [
        f'{name} is {profile[name]!r}, not {value!r}'
        for values in mine
        for name, value in values.items()
        # Allowed is what the simulated arm is for; a file with every default refuses it.
        if name in profile and value != profile[name] and name != 'model.random_weights'
    ]
    if overruled:
        out.append(f'the robot profile comes before {file}: {"; ".join(overruled)}')
    return out


def _parameter_tree(file: Path) -> Mapping[str, Any]:
    try:
        tree = yaml.safe_load(file.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentError(f'params_file {file}: no YAML: {error}') from None
    if not isinstance(tree, Mapping):
        raise ArgumentError(
            f'params_file {file}: not a ROS 2 parameter file (node name, then ros__parameters)'
        )
    return tree


def sections(tree: Mapping[str, Any], at: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """Each node-name pattern of a parameter file with its values by dotted name."""
    for key, value in tree.items():
        if key == 'ros__parameters':
            yield at, dict(dotted(value))
        elif isinstance(value, Mapping):
            yield from sections(value, f'{at}/{str(key).strip("/")}')


def dotted(tree: Any, at: str = '') -> Iterator[tuple[str, Any]]:
    """Leaves of nested parameters."""
    for key, value in (tree or {}).items():
        if isinstance(value, Mapping):
            yield from dotted(value, f'{at}{key}.')
        else:
            yield f'{at}{key}', value


def applies(pattern: str, node_name: str) -> bool:
    """Whether a section counts for a node: ``*`` is one part of a name, ``**`` any number."""
    parts = {'**': '(/[^/]+)*', '*': '/[^/]+'}
    regex = ''.join(parts.get(p, '/' + re.escape(p)) for p in pattern.split('/') if p)
    return re.fullmatch(regex, node_name) is not None
