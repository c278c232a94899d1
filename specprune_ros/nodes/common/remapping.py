"""How a robot profile becomes remappings and parameters: one place for launch files, demo and
replay.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specprune_ros.robot.profile import Profile, ProfileError, load

# The words of model.random_weights.
REFUSED, ALLOWED = 'refused', 'allowed_and_its_actions_mean_nothing'
# Of image_transport: which form of the camera topics is meant.
TRANSPORTS = ('profile', 'raw', 'compressed')
COMPRESSED = '/compressed'  # how image_transport names the second topic


def profile_path(name: str) -> Path:
    """A robot profile: a file, or the name of one that comes with the package."""
    if name.endswith(('.yaml', '.yml')):
        return Path(name)
    return share() / 'config' / 'robots' / f'{name}.yaml'


def find_profile(name: str) -> Path:
    """As :func:`profile_path`. Raises ``ProfileError`` naming those there are."""
    path = profile_path(name).expanduser()
    if not path.is_file():
        known = sorted(file.stem for file in (share() / 'config' / 'robots').glob('*.yaml'))
        raise ProfileError(
            f"profile '{name}': no file {path}; give the path of a profile (.yaml) or one of "
            f'{", ".join(known)}'
        )
    return path


def load_profile(name: str, robot_sn: str = '', namespace: str = '') -> Profile:
    """The checked profile ``name`` for nodes in ``namespace``. Raises ``ProfileError``."""
    return load(find_profile(name), profile_arguments(robot_sn, namespace))


def profile_arguments(robot_sn: str, namespace: str) -> dict[str, str]:
    """What fills ``{...}`` in a profile."""
    filled = {'namespace': namespace.rstrip('/')}
    return {**filled, 'robot_sn': robot_sn} if robot_sn else filled


def share() -> Path:
    """Where ``config`` and ``msg`` are: the checkout, or the installed share folder."""
    checkout = Path(__file__).parents[3]
    if (checkout / 'config' / 'robots').is_dir():
        return checkout
    from ament_index_python.packages import get_package_share_directory

    return Path(get_package_share_directory('specprune_ros'))


def image_topic(topic: str, transport: str) -> str:
    """The topic of the same images in the form ``transport``, one of :data:`TRANSPORTS`."""
    if transport == 'profile':
        return topic
    return topic.removesuffix(COMPRESSED) + COMPRESSED * (transport == 'compressed')


def policy_remappings(profile: Profile) -> dict[str, str]:
    """Topics of ``specprune_node`` on this arm: private name to the arm's topic."""
    seen = profile.observation
    topics = {f'~/image/{name}': camera.topic for name, camera in seen.cameras.items()}
    topics['~/joint_states'] = seen.joint_states
    topics['~/gripper_states'] = seen.gripper_states
    topics['~/ee_pose'] = seen.ee_pose
    twist = '~/ee_twist_accel' if seen.ee_twist_type == 'accel_stamped' else '~/ee_twist'
    topics[twist] = seen.ee_twist
    topics['~/robot_description'] = seen.robot_description
    return {private: topic for private, topic in topics.items() if topic}


def policy_parameters(profile: Profile) -> dict[str, Any]:
    """Parameters of ``specprune_node`` that follow from the arm."""
    observed = profile.observation
    cameras = observed.cameras
    compressed = {camera.type for camera in cameras.values()} == {'compressed'}
    parameters = {
        'cameras': list(cameras),
        'image_transport': 'compressed' if compressed else 'raw',
        'image_reliability': observed.image_reliability,
        'base_frame': profile.base_frame,
        'proprio.pose_from': 'topic' if observed.ee_pose else 'joint_states',
        'speed.source': observed.speed_source,
        'speed.tip_frame': profile.tool_link,
        'speed.joint_prefix': profile.joint_prefix,
    }
    if profile.simulated:
        parameters['model.random_weights'] = ALLOWED
    if observed.gripper_joints:
        parameters['proprio.gripper_joints'] = list(observed.gripper_joints)
    if observed.gripper_scales:
        parameters['proprio.gripper_scales'] = list(observed.gripper_scales)
    if observed.robot_description_file:
        parameters['robot_description_file'] = observed.robot_description_file
    if observed.robot_description_sha256:
        parameters['robot_description_sha256'] = observed.robot_description_sha256
    return parameters


def refuse_random_weights(values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` where parameters of the policy name no model and do not allow random
    weights.
    """
    named = values.get('model.path') or values.get('model.server')
    if not named and values.get('model.random_weights', REFUSED) == REFUSED:
        raise ValueError(
            'model.path is empty, and random weights are refused on this robot: their actions '
            'mean nothing and would move the arm at random. Give model.path (launch: '
            'checkpoint:=FOLDER) or model.server; to try the wiring, in a dry run, set '
            f"model.random_weights (launch: random_weights) to '{ALLOWED}'"
        )


def ros_arguments(remappings: Mapping[str, str], parameters: Mapping[str, Any]) -> list[str]:
    """Command-line arguments for a node's process."""
    arguments = ['--ros-args']
    for private, topic in remappings.items():
        arguments += ['-r', f'{private}:={topic}']
    for name, value in parameters.items():
        arguments += ['-p', f'{name}:={_yaml(value)}']
    return arguments


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return 'true' if value else 'false'
    if isinstance(value, str):
        # Quoted, so that texts such as "1e3" or "yes" stay texts.
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, (list, tuple)):
        return '[' + ', '.join(_yaml(item) for item in value) + ']'
    return str(value)
