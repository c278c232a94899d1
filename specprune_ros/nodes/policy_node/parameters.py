"""The parameters of ``specprune_node`` besides ``pruning.*``, which come from the method's own
table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specprune_ros.models.conventions import PLATFORMS
from specprune_ros.nodes.common.parameters import ParameterSpec
from specprune_ros.nodes.common.remapping import ALLOWED, REFUSED
from specprune_ros.policy.real_time_chunking import SCHEDULES
from specprune_ros.pruning.params import PruningParams, specs
from specprune_ros.robot.speed import SOURCES

PREFIX = 'pruning.'
SPEED_SOURCES = (*SOURCES, 'none')
PROPRIO_LAYOUTS = ('pose_gripper', 'joints', 'none')

NODE_PARAMETERS = (
    ParameterSpec(
        'model.server',
        '',
        'Address of a policy server, ws://HOST:PORT or wss://, which is queried instead of a '
        'model on this machine (docs/how-to/scale.md); the other model.* then have no effect, but '
        'for model.random_weights.',
    ),
    ParameterSpec(
        'model.server_timeout',
        1.0,
        'How long the server may take to answer, and to be reached; then it counts as lost.',
        unit='s',
        low=0.05,
        high=60.0,
    ),
    ParameterSpec(
        'model.path',
        '',
        'Folder of a checkpoint; empty builds the preset with random weights, where '
        'model.random_weights allows it.',
    ),
    ParameterSpec(
        'model.random_weights',
        REFUSED,
        'Whether a model with random weights may be built, or asked on a server. Only the profile '
        'of the simulated arm allows it: such actions would move a real arm at random.',
        choices=(REFUSED, ALLOWED),
    ),
    ParameterSpec('model.preset', 'tiny', 'Named sizes used where model.path is empty.'),
    ParameterSpec('model.seed', 0, 'Seed of random weights.', low=0, high=2**31 - 1),
    ParameterSpec('model.device', 'auto', 'cpu, cuda, cuda:N, or auto: a GPU if there is one.'),
    ParameterSpec(
        'model.dtype',
        'auto',
        'Number format of the weights; auto is bfloat16 on a GPU; on a CPU float32, but bfloat16 '
        "for a checkpoint of the models' authors where the CPU has units for it.",
        choices=('auto', 'float32', 'bfloat16', 'float16'),
    ),
    ParameterSpec(
        'model.fp8',
        False,
        "The decoder's linear layers in float8, on Ada, Hopper or newer; the log says how far the "
        'actions move by it. A CPU is slow at it.',
    ),
    ParameterSpec(
        'model.unnorm_key',
        '',
        'Statistics to un-normalise with, where the checkpoint has several.',
    ),
    ParameterSpec(
        'model.platform',
        '',
        'Robot or benchmark the checkpoint was trained for: what its numbers mean '
        '(docs/how-to/checkpoints.md). Empty: by its sizes (OpenVLA-OFT), folder (Dexbotic), key '
        '(CogACT) or the name under assets/ (openpi).',
        choices=('', *PLATFORMS),
    ),
    ParameterSpec(
        'model.fast_images',
        False,
        "Leave out the JPEG round trip of the authors' image path: faster, not bit-exact.",
        formerly='model.fast_pictures',
    ),
    ParameterSpec(
        'model.prepare_on_arrival',
        'auto',
        'Resize images when they arrive, and not in the query. auto: on a GPU; on a CPU the '
        'query would share its cores with images that no query uses.',
        choices=('auto', 'on', 'off'),
    ),
    ParameterSpec(
        'model.threads',
        0,
        'CPU threads of the model; 0 leaves one core to the rest of the system.',
        low=0,
        high=256,
    ),
    ParameterSpec(
        'model.cuda_graphs',
        True,
        'On a GPU: capture whole queries as CUDA graphs, one per layout, budgets and mode, and '
        'replay them. Live parameters take over when their graphs are captured.',
    ),
    ParameterSpec(
        'model.calibrate',
        'auto',
        'Measure while loading which numbers of rows cost the same on this device, in about 20 s, '
        'and remember it, for pruning.free_tokens; auto: on a GPU.',
        choices=('auto', 'always', 'never'),
    ),
    ParameterSpec(
        'model.load_timeout', 600.0, 'How long loading may take.', unit='s', low=1.0, high=7200.0
    ),
    ParameterSpec(
        'cameras', ['agent', 'wrist'], "Camera names, in the model's order; one input topic each."
    ),
    ParameterSpec(
        'image_transport',
        'raw',
        'Message type of the images.',
        choices=('raw', 'compressed'),
    ),
    ParameterSpec(
        'image_reliability',
        'best_effort',
        'Reliability requested of the camera topics.',
        choices=('best_effort', 'reliable'),
    ),
    ParameterSpec(
        'base_frame',
        'base_link',
        'Frame the actions are expressed in; stamped on every chunk. A pose that names another '
        'frame is refused; empty takes poses in any.',
    ),
    ParameterSpec(
        'proprio.layout',
        'pose_gripper',
        'What proprioception is made of: pose_gripper is end-effector position, axis-angle and '
        'the gripper joints (LIBERO); joints is proprio.joints in order.',
        choices=PROPRIO_LAYOUTS,
    ),
    ParameterSpec('proprio.joints', ['joint1'], 'Joint names for layout joints.'),
    ParameterSpec(
        'proprio.gripper_joints',
        ['finger_joint1', 'finger_joint2'],
        'Gripper joints that proprioception ends with in layout pose_gripper; a name may stand '
        'twice.',
    ),
    ParameterSpec(
        'proprio.gripper_scales',
        [],
        'What each of proprio.gripper_joints is multiplied by to be what the training data had '
        '(0.5 and -0.5 of a width, for two fingers as LIBERO has them); empty: 1.',
        kind='float[]',
    ),
    ParameterSpec(
        'proprio.pose_from',
        'topic',
        'Where the end-effector pose comes from: the ~/ee_pose topic, or joint_states and '
        'robot_description (speed.tip_frame in base_frame).',
        choices=('topic', 'joint_states'),
    ),
    ParameterSpec(
        'speed.source',
        'joint_states',
        "What the controller judges speed by; action is the paper's own source.",
        choices=SPEED_SOURCES,
    ),
    ParameterSpec('speed.tip_frame', 'tcp', 'Link of robot_description whose speed counts.'),
    ParameterSpec('speed.joint_prefix', '', 'Prefix of joint names, such as a serial number.'),
    ParameterSpec(
        'robot_description', '', 'URDF; empty waits for it on the robot_description topic.'
    ),
    ParameterSpec(
        'robot_description_file', '', 'URDF file that replaces the topic; read when activated.'
    ),
    ParameterSpec(
        'robot_description_sha256',
        '',
        'The only description taken from the topic (sha256sum of its text); empty: the first one.',
    ),
    ParameterSpec('instruction', '', 'Instruction to begin with; the topic replaces it.'),
    ParameterSpec(
        'query_rate',
        10.0,
        'Most queries a second; 0 queries at every new set of images.',
        unit='Hz',
        low=0.0,
        high=100.0,
        live=True,
    ),
    ParameterSpec(
        'query_when',
        'rate',
        'rate: query_rate times a second, each chunk replacing what is left of the one before. '
        'chunk: once per chunk, so that the next is there as the motion ends; query_rate is then '
        'only a limit.',
        choices=('rate', 'chunk'),
        live=True,
    ),
    ParameterSpec(
        'fresh_wait',
        0.05,
        'When a query is due, how long to wait for images newer than those received.',
        unit='s',
        low=0.0,
        high=1.0,
        live=True,
    ),
    ParameterSpec(
        'rtc.enabled',
        False,
        'Real-time chunking: a query of a flow policy (pi0, pi0.5) goes on from the rows of the '
        "chunk before that the arm will have played by then. Needs the executor's ~/executed.",
        live=True,
    ),
    ParameterSpec(
        'rtc.execution_horizon',
        10,
        'Rows of the new chunk up to which the one before counts at all.',
        unit='rows',
        low=1,
        high=256,
        live=True,
    ),
    ParameterSpec(
        'rtc.schedule',
        'linear',
        'How its weight falls between the delay, where it is 1, and rtc.execution_horizon.',
        choices=SCHEDULES,
        live=True,
    ),
    ParameterSpec(
        'rtc.max_guidance_weight',
        10.0,
        'Strongest pull towards the chunk before in a step of the sampler.',
        low=0.001,
        high=100.0,
        live=True,
    ),
    ParameterSpec(
        'max_age.image',
        0.5,
        'Oldest image a chunk may be made from.',
        unit='s',
        low=0.02,
        high=10.0,
        live=True,
        formerly='max_age.picture',
    ),
    ParameterSpec(
        'max_age.state',
        0.5,
        'Oldest proprioception a chunk may be made from.',
        unit='s',
        low=0.02,
        high=10.0,
        live=True,
    ),
    ParameterSpec(
        'frozen_after',
        10.0,
        'Diagnostics warn when a camera sends the same image for longer (with new stamps); 0 '
        'never.',
        unit='s',
        low=0.0,
        high=3600.0,
    ),
    ParameterSpec(
        'max_skew',
        0.05,
        "Most the cameras' stamps may lie apart.",
        unit='s',
        low=0.001,
        high=10.0,
        live=True,
    ),
    ParameterSpec(
        'max_normalised_action',
        10.0,
        'Largest normalised action that is believed; -1 to 1 spans the training data.',
        low=1.0,
        high=1000.0,
        live=True,
        formerly='absurd_action',
    ),
    ParameterSpec(
        'measure.action_deviation',
        False,
        'Run a dense pass beside every query and publish how far the actions differ (slow).',
        live=True,
    ),
)


def pruning_parameters() -> tuple[ParameterSpec, ...]:
    """The method's parameters as ROS parameters under ``pruning.``, all live."""
    return tuple(
        ParameterSpec(
            PREFIX + spec.name,
            list(spec.default) if isinstance(spec.default, tuple) else spec.default,
            f'{spec.description} Source: {spec.source}.' if spec.source else spec.description,
            kind=spec.type,
            unit=spec.unit,
            low=spec.range[0] if spec.range else None,
            high=spec.range[1] if spec.range else None,
            choices=tuple(spec.choices or ()),
            live=True,
            group=spec.group,
        )
        for spec in specs()
    )


def pruning_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values under ``pruning.`` by their short names."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in values.items()
        if name.startswith(PREFIX)
    }


def build_params(chosen: Mapping[str, Any]) -> PruningParams:
    """The preset's parameters, and what was chosen besides. Raises ``ParamError``."""
    others = {name: value for name, value in chosen.items() if name != 'preset'}
    return PruningParams.preset_of(chosen.get('preset', 'default')).replace(**others)


def check_names(values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for names that cannot be, the parameter first."""
    for name in ('cameras', 'proprio.joints'):
        if len(set(values[name])) != len(values[name]) or not all(values[name]):
            raise ValueError(f'{name} must hold different, non-empty names')
    if not values['cameras']:
        raise ValueError('cameras must name at least one camera')
    grips, scales = values['proprio.gripper_joints'], values['proprio.gripper_scales']
    if not all(grips):
        raise ValueError('proprio.gripper_joints must hold non-empty names')
    if scales and len(scales) != len(grips):
        raise ValueError(
            f'proprio.gripper_scales has {len(scales)} numbers for the {len(grips)} names of '
            'proprio.gripper_joints'
        )


def check_proprio(read: int, values: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless the layout has as many numbers as the model reads."""
    layout = values['proprio.layout']
    if layout == 'none':
        return
    key, pose = ('proprio.joints', 0) if layout == 'joints' else ('proprio.gripper_joints', 6)
    names = values[key]
    if pose + len(names) != read:
        also = ' (observation.gripper_joints of the profile)' if pose else ''
        raise ValueError(
            f'{key}{also} has {len(names)} names ({", ".join(names) or "none"}), but the model '
            f'reads {read} numbers of proprioception'
            + (f': {pose} of the pose and {read - pose} of the gripper' if pose else '')
        )
