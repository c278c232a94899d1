"""What a robot's topics and settings should be like, and what to do where they are not.

Measured elsewhere (:mod:`specprune_ros.apps.doctor`); judged here, without ROS.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specprune_ros.robot.geometry import Pose
from specprune_ros.robot.jog import outside
from specprune_ros.robot.profile import Profile

OK, WARN, FAIL, SKIP = 'ok', 'warn', 'fail', 'skip'
IMAGE_RATE = 5.0  # Hz below which a policy sees too little
CLOCK = 0.05  # s that stamps may lie ahead of this machine's clock
SILENT = 1.0  # s without a message at the end of listening
SKEW = 0.05  # s between cameras, max_skew of specprune_node
IMAGE_AGE = 0.5  # s, max_age.image of specprune_node


@dataclass(frozen=True)
class Row:
    """One check: its ``state`` (:data:`OK`, :data:`WARN`, :data:`FAIL` or :data:`SKIP`), what was
    found, and what to do about it.
    """

    check: str
    state: str
    found: str
    cure: str = ''


@dataclass
class Received:
    """A topic as it was received for ``seconds``.

    ``key`` is the profile's. ``publishers``: names; ``kinds``: types published; ``mismatch``: why
    quality of service keeps publisher and node apart. ``ages``: seconds from stamp to arrival, per
    message; ``stamps`` in ns; ``frame`` and ``names`` of the newest message that had some;
    ``silent``: seconds from the newest message to the end; ``unreadable``: why it is no image.
    """

    key: str
    topic: str
    kind: str
    seconds: float = 0.0
    publishers: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    mismatch: str = ''
    count: int = 0
    ages: list[float] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    frame: str = ''
    names: set[str] = field(default_factory=set)
    note: str = ''
    silent: float = 0.0
    unreadable: str = ''

    @property
    def rate(self) -> float:
        """Messages a second: by their stamps, but no more than arrived."""
        if len(self.stamps) > 1 and self.stamps[-1] > self.stamps[0]:
            stamped = (len(self.stamps) - 1) / ((self.stamps[-1] - self.stamps[0]) * 1e-9)
            # One more may have been under way.
            arrived = (self.count + 1) / self.seconds if self.seconds else math.inf
            return min(stamped, arrived)
        return self.count / self.seconds if self.seconds else 0.0


def judge(
    received: Received,
    *,
    slowest: float,
    oldest: float,
    known: Sequence[str] = (),
    latched: bool = False,
) -> Row:
    """A topic: published, of the right type, received, stamped now, fast enough.

    ``slowest`` in Hz, ``oldest`` in s; ``known`` are the topics there are, for a name that was
    mistyped. A ``latched`` one speaks once.
    """
    name = f'{received.key}: {received.topic}'

    def row(state: str, found: str, cure: str = '') -> Row:
        return Row(name, state, found, cure)

    if not received.publishers:
        near = difflib.get_close_matches(received.topic, known, 1)
        hint = f', or is {near[0]} meant' if near else ''
        return row(
            FAIL, 'nobody publishes it', f'start its driver{hint}? ({received.key} in the profile)'
        )
    if received.kind not in received.kinds:
        return row(
            FAIL,
            f'is {", ".join(received.kinds)}',
            f'{received.kind} is read: correct {received.key}',
        )
    who = ', '.join(sorted(set(received.publishers)))
    if received.mismatch and not received.count:
        return row(
            FAIL, f'{who}: {received.mismatch}', 'set quality of service alike (cameras: '
            'observation.image_reliability in the profile; others: in the driver)',
        )  # fmt: skip
    if not received.count:
        return row(
            FAIL,
            f'{who} publishes, nothing arrives in {received.seconds:.0f} s',
            'images: FASTDDS_DEFAULT_PROFILES_FILE=config/fastdds.xml for driver and nodes; '
            'else: same ROS_DOMAIN_ID, network, and is the driver active?',
        )
    text = f'{received.rate:.1f} Hz' if not latched else 'received'
    text = f'{text}, {received.note}' if received.note else text
    if latched:
        return row(OK, text)
    if received.unreadable:
        return row(
            FAIL, f'{text}: {received.unreadable}', 'set the encoding in its driver, or republish'
        )
    if received.stamps and received.stamps[-1] <= 0:
        return row(FAIL, f'{text}, without a stamp', 'the driver must stamp when it measured')
    ages = sorted(received.ages)
    age = ages[len(ages) // 2] if ages else 0.0
    text += f', {1e3 * age:.0f} ms old' if ages else ''
    if ages and ages[0] < -CLOCK:
        return row(
            FAIL,
            f'{text}: stamps lie {-ages[0]:.2f} s ahead',
            "synchronise the machines' clocks (chrony or PTP), or use_sim_time on all",
        )
    if age > oldest:
        return row(
            FAIL,
            f'{text}; at most {oldest:g} s is used',
            'clocks that differ (chrony or PTP), a slow network, or stamps that are not of the '
            'measurement',
        )
    if received.rate < slowest:
        return row(
            FAIL,
            f'{text}; at least {slowest:g} Hz is needed',
            'raise the rate in its driver; where images get lost: config/fastdds.xml for both',
        )
    if received.silent > max(SILENT, 3.0 / slowest):
        return row(
            FAIL, f'{text}, and nothing for the last {received.silent:.1f} s', 'is it still there?'
        )
    return row(OK, text)


def frame(received: Received, base_frame: str) -> Row | None:
    """The frame of poses."""
    if not received.count:
        return None
    name = f'{received.key}: frame'
    if not received.frame:
        return Row(name, WARN, 'names no frame', f'is it {base_frame}? such poses are taken')
    if received.frame != base_frame:
        return Row(
            name,
            FAIL,
            f"is in '{received.frame}'",
            f"base_frame of the profile is '{base_frame}': poses in another frame are refused",
        )
    return Row(name, OK, received.frame)


def joints(
    wanted: Sequence[str], prefix: str, received: Sequence[Received], key: str
) -> Row | None:
    """Joint names of the profile among those in the messages."""
    if not wanted:
        return None
    topics = ', '.join(h.topic for h in received)
    names = set().union(*(h.names for h in received))
    if not names:
        return Row(key, SKIP, f'no joint states on {topics}')
    bare = names | {prefix + n for n in names} | {n.removeprefix(prefix) for n in names}
    missing = sorted(set(wanted) - bare)
    if missing:
        return Row(
            key,
            FAIL,
            f'no joint named {", ".join(missing)}; there are {", ".join(sorted(names))}',
            f'correct {key} in the profile'
            + ('' if 'gripper' not in key else ', and observation.gripper_states'),
        )
    return Row(key, OK, f'{len(set(wanted))} found on {topics}')


def skew(cameras: Mapping[str, Received]) -> Row | None:
    """Whether images of one moment come from all cameras."""
    stamps = {name: received.stamps for name, received in cameras.items() if received.stamps}
    if len(stamps) < 2 or len(stamps) < len(cameras):
        return None
    first, *others = stamps.values()
    apart = sorted(max(min(abs(a - b) for b in other) for other in others) * 1e-9 for a in first)
    typical = apart[len(apart) // 2]
    name = f'cameras {", ".join(stamps)}: skew'
    if typical > SKEW:
        return Row(
            name,
            FAIL,
            f'nearest images {1e3 * typical:.0f} ms apart',
            f'at most {1e3 * SKEW:.0f} ms: trigger them together, raise their rate, or raise '
            'max_skew of specprune_node',
        )
    return Row(name, OK, f'{1e3 * typical:.0f} ms apart')


def command(
    topic: str, kind: str, subscribers: Mapping[str, str], publishers: Sequence[str]
) -> list[Row]:
    """The topic that moves the arm; ``subscribers`` are types by name."""
    name = f'command.topic: {topic}'
    if not subscribers:
        out = [
            Row(name, FAIL, 'nobody listens', 'start and activate the controller it belongs to')
        ]
    elif kind not in subscribers.values():
        kinds = ', '.join(sorted(set(subscribers.values())))
        out = [Row(name, FAIL, f'takes {kinds}', f'{kind} is sent: correct command.adapter')]
    else:
        out = [Row(name, OK, f'{", ".join(sorted(subscribers))} listens')]
    if publishers:
        out.append(
            Row(
                'command.topic: others',
                WARN,
                f'{", ".join(sorted(set(publishers)))} publishes on it',
                'two that command one arm fight: stop the other before you enable',
            )
        )
    return out


def limits(profile: Profile, shipped: bool, pose: Pose | None) -> list[Row]:
    """The limits of the profile, whose box is the one ``shipped``; ``pose`` is the tool's."""
    box, speed = profile.limits.workspace, profile.limits.translation_speed
    out = []
    if box is None:
        out.append(
            Row(
                'limits.workspace',
                FAIL,
                'none',
                'measure the box the tool may work in, and set it',
            )
        )
    else:
        size = ' x '.join(f'{b - a:.2f}' for a, b in zip(*box, strict=True))
        shipped = shipped and not profile.simulated
        out.append(
            Row(
                'limits.workspace',
                WARN if shipped else OK,
                f'{size} m' + (', as shipped' if shipped else ''),
                'measure your own in a copy of the profile (docs: first day)' if shipped else '',
            )
        )
    where = '' if pose is None else outside(profile, pose)
    if where:
        out.append(
            Row(
                'tool in limits.workspace',
                FAIL,
                where,
                'move the arm inside by hand, or correct the box: it only moves inwards',
            )
        )
    elif pose is not None and box is not None:
        place = ', '.join(f'{v:.3f}' for v in pose.position)
        out.append(Row('tool in limits.workspace', OK, f'at {place} m'))
    state = WARN if speed > 0.25 and not profile.simulated else OK
    out.append(
        Row(
            'limits.translation_speed',
            state,
            f'{speed:g} m/s',
            'start at or below 0.25 m/s' if state == WARN else '',
        )
    )
    return out


def checkpoint(data: Mapping[str, Any], profile: Profile, gpu: int) -> list[Row]:
    """Whether a checkpoint, as ``specprune inspect --json`` tells of it, fits the arm. ``gpu``:
    bytes of memory, 0 without one.
    """
    if data['problems']:
        return [
            Row('checkpoint', FAIL, problem, 'see `specprune inspect`')
            for problem in data['problems']
        ]
    config, out = data['config'], []
    action = config['action']
    meaning = {row['name']: row['value'] for row in data['meaning']}
    out.append(Row('checkpoint', OK, f'{data["family"]}, {meaning.get("a row is", "")}'))
    need, have = len(config['cameras']), len(profile.observation.cameras)
    flow = config.get('flow') is not None
    fits = have == need or (flow and have <= need)
    out.append(
        Row(
            'checkpoint: cameras',
            OK if fits else FAIL,
            f'reads {need} ({", ".join(config["cameras"])}), the profile has {have}',
            '' if fits else 'observation.cameras of the profile must name as many, in this order',
        )
    )
    reads, grips = config['proprio_dim'], len(profile.observation.gripper_joints)
    sizes = {'pose_gripper': 6 + grips, 'joints': len(profile.joints)} if reads else {'none': 0}
    layout = ' or '.join(name for name, size in sizes.items() if size == reads)
    out.append(
        Row(
            'checkpoint: proprioception',
            OK if layout else FAIL,
            f'reads {reads} numbers'
            + (f': proprio.layout {layout}' if layout else f'; pose 6 and gripper {grips} here'),
            ''
            if layout
            else 'observation.gripper_joints of the profile, as many as the training data had',
        )
    )
    joint = action['kind'].startswith('joint')
    takes = not joint or profile.command.adapter == 'joint_trajectory'
    out.append(
        Row(
            'checkpoint: actions',
            OK if takes else FAIL,
            ', '.join(f'{name}: {value}' for name, value in meaning.items() if name != 'a row is'),
            '' if takes else 'joint actions need command.adapter joint_trajectory',
        )
    )
    size = data['memory']['bfloat16']
    if gpu and size > 0.9 * gpu:
        out.append(
            Row(
                'checkpoint: memory',
                FAIL,
                f'{size / 1e9:.1f} GB in bfloat16, the GPU has {gpu / 1e9:.1f} GB',
                'a larger GPU, model.fp8, or model.server on another machine',
            )
        )
    elif not gpu and size > 2e9:
        out.append(
            Row(
                'checkpoint: memory',
                WARN,
                f'{size / 1e9:.1f} GB in bfloat16 and no GPU: seconds a query',
                'a GPU here, or model.server on another machine (docs: scale)',
            )
        )
    return out
