"""The policy node as its users meet it: real process, real DDS."""

import math
import signal

import numpy as np
import pytest
import torch

from specprune_ros.bench import calibration
from specprune_ros.bench.calibration import Sweep
from specprune_ros.policy.build import build_policy

pytestmark = [pytest.mark.ros, pytest.mark.timeout(240)]

CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE = 1, 2, 3, 4


def running(rig):
    """Feed the node until it has pruned once."""
    assert rig.feed(90.0, until=lambda: len(rig.stats) >= 3), rig.process.text()
    return rig


@pytest.fixture(scope='module')
def shared(module_rig_with, tmp_path_factory):
    """One node for the tests that leave it as it was."""
    # Known of this machine: whatever rows there are, they cost the same.
    torch.set_num_threads(1)
    flat = Sweep((100, 512), (193, 605), (5.0, 5.0), '2026-11-21')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        loaded = build_policy(preset='tiny', device='cpu', threads=1).loaded
        calibration.keep(calibration.key(loaded), flat)
        return running(
            module_rig_with(
                model__calibrate='always',
                model__prepare_on_arrival='on',
                pruning__free_tokens=False,
            )
        )


@pytest.fixture
def rig(shared):
    """The shared node, with the parameters and the instruction it began with."""
    from std_srvs.srv import SetBool

    assert shared.call(SetBool, '/specprune_node/enable', SetBool.Request(data=True)).success
    assert shared.set(pruning__preset='paper') == [(True, '')]
    first = {'pruning__preset': 'default', 'pruning__pruner': 'specprune'}
    first |= {'pruning__free_tokens': False, 'pruning__refresh_when': 'never'}
    assert shared.set(together=True, query_when='rate', query_rate=0.0, **first) == (True, '')
    shared.say('lift the red cube')
    fresh(shared, 3)
    return shared


def fresh(rig, count=2):
    """Feed until ``count`` more accounts have come; returns the newest."""
    have = len(rig.stats)
    assert rig.feed(60.0, until=lambda: len(rig.stats) >= have + count), rig.process.text()
    return rig.stats[-1]


def reported(rig, key):
    """What the newest diagnostics say under the first key that begins so."""
    values = rig.diagnoses[-1].status[0].values if rig.diagnoses else []
    return next((value.value for value in values if value.key.startswith(key)), '')


def quiet(rig, feed, reason, logged=None):
    """With this input no chunk comes, and diagnostics and the log, from ``logged`` characters on,
    say why.
    """
    from specprune_ros.nodes.common.time import stamp_ns

    rig.spin(0.5)  # what came before this input may still be used
    have, begin = len(rig.chunks), rig.now()
    said = len(rig.diagnoses)
    logged = len(rig.process.text()) if logged is None else logged
    for _ in range(400):
        feed()
        rig.spin(0.05)
        # The log has room for one line of a source and second.
        new = len(rig.diagnoses) > said
        if new and reason in rig.health() and reason in rig.process.text()[logged:]:
            break
    assert reason in rig.health(), rig.health()
    assert reason in rig.process.text()[logged:]
    # Of a query that a busy machine drew out, the chunk comes late: it is of good input.
    stamps = [stamp_ns(chunk) for chunk in rig.chunks[have:]]
    assert all(begin - 20 * 10**9 < stamp < begin for stamp in stamps)
    assert rig.process.alive()


def test_images_in_chunks_out_parameters_live(rig):
    assert 'fewer tokens buy nothing' in rig.process.text()
    stats, first = rig.stats[-1], rig.stats[0]
    assert rig.wait(lambda: rig.chunks[-1].sequence >= stats.sequence)
    chunk = rig.chunks[-1]

    # The chunk says all that is needed to read it.
    assert chunk.horizon * len(chunk.dims) == len(chunk.data) == 56
    assert np.isfinite(chunk.data).all()
    assert chunk.header.frame_id == 'base_link'
    assert chunk.instruction == 'lift the red cube'
    assert chunk.step_dt.nanosec == 50_000_000
    assert list(chunk.dims)[chunk.gripper_dim] == 'gripper'
    begin, end = (t.sec + 1e-9 * t.nanosec for t in (chunk.inference_begin, chunk.inference_end))
    observed = chunk.header.stamp.sec + 1e-9 * chunk.header.stamp.nanosec
    assert observed <= begin < end
    assert chunk.first_valid_step == min(8, math.floor((end - observed) / 0.05))

    # The account belongs to it.
    assert rig.wait(lambda: rig.stats[-1].sequence >= chunk.sequence)
    matching = [s for s in rig.stats if s.sequence == chunk.sequence]
    assert matching and matching[-1].header == chunk.header
    assert first.mode == first.MODE_DENSE and 'first query' in first.reason
    assert first.tokens_mean == first.tokens_in == 512
    assert stats.mode == stats.MODE_FINE and 'speed unknown' in stats.reason
    assert stats.tokens_mean < 512 and stats.flops_ratio < 1.0 and stats.prior_valid
    assert list(stats.tokens_after) == sorted(stats.tokens_after, reverse=True)
    assert math.isnan(stats.speed_translation) and stats.speed_source == 'none'
    assert stats.threshold_translation == pytest.approx(0.35)  # no statistics: LIBERO's range
    assert stats.threshold_rotation == pytest.approx(2.0) and stats.history_unit == 0.05

    # A change takes effect on the next query, and its version shows.
    before = stats.params_version
    assert rig.set(pruning__alpha=0.4) == [(True, '')]
    after = fresh(rig, 3)
    assert after.params_version == before + 1
    assert after.alpha == pytest.approx(0.4)
    assert after.tokens_mean < stats.tokens_mean

    # Tokens that cost nothing are kept when that is wanted, and the diagnostics say how many.
    assert rig.set(pruning__free_tokens=True) == [(True, '')]
    free = fresh(rig, 3)
    assert set(free.tokens_after) == {512} and len(free.tokens_after) == len(after.tokens_after)
    left = zip(after.prune_layers, after.tokens_after, strict=True)
    more = [f'{512 - tokens} after layer {layer}' for layer, tokens in left]
    assert rig.feed(20.0, until=lambda: reported(rig, 'kept more') == ', '.join(more))
    assert rig.set(pruning__free_tokens=False) == [(True, '')]
    assert list(fresh(rig, 3).tokens_after) == list(after.tokens_after)

    # Out of range, of the wrong type, unknown choice, contradictory together: refused with reason.
    ((ok, reason),) = rig.set(pruning__alpha=99.0)
    assert not ok and 'pruning.alpha' in reason
    ((ok, reason),) = rig.set(pruning__alpha='much')
    assert not ok and 'type' in reason.lower()
    ((ok, reason),) = rig.set(pruning__pruner='best')
    assert not ok and 'specprune' in reason
    ok, reason = rig.set(together=True, pruning__history_min=9, pruning__history_max=3)
    assert not ok and 'history_min' in reason
    ok, reason = rig.set(together=True, pruning__history_min=2, pruning__history_max=3)
    assert ok, reason
    ((ok, reason),) = rig.set(model__preset='oft-medium')
    assert not ok and 'fixed while the node is configured' in reason
    ((ok, reason),) = rig.set(rtc__enabled=True)
    assert not ok and 'rtc.enabled: only a flow policy' in reason
    assert rig.get('pruning.alpha') == pytest.approx(0.4)

    # A preset sets the others, and they show it.
    assert rig.set(pruning__preset='paper') == [(True, '')]
    assert rig.get('pruning.history_max') == 11
    assert rig.get('pruning.alpha') == pytest.approx(0.8)
    assert rig.set(pruning__preset='default', pruning__alpha=0.8)[0] == (True, '')

    # Another pruner, live.
    assert rig.set(pruning__pruner='random') == [(True, '')]
    assert fresh(rig, 3).pruner == 'random'


def test_what_is_chosen_explicitly_wins_over_the_preset(rig_with):
    # At start, live, together in one request, and again after configuring anew.
    rig = rig_with(pruning__preset='authors', pruning__first_dense=True, base_frame='fr3_link0')
    rig.frame = 'fr3_link0'  # of the tool's pose
    running(rig)
    assert rig.chunks[-1].header.frame_id == 'fr3_link0' and 'ee_pose' not in rig.process.text()
    assert rig.get('pruning.first_dense') is True
    assert rig.get('pruning.k_global') == 12
    assert rig.set(pruning__alpha=0.4) == [(True, '')]
    assert rig.set(together=True, pruning__preset='paper', pruning__alpha=0.4) == (True, '')
    assert rig.get('pruning.alpha') == pytest.approx(0.4)
    assert rig.set(pruning__preset='paper') == [(True, '')]  # the same again: lets go of alpha
    assert rig.get('pruning.alpha') == pytest.approx(0.8)
    assert 'pruning.preset lets go of what was set before: alpha' in rig.process.text()
    assert rig.set(pruning__k_local=30) == [(True, '')]
    for number in (DEACTIVATE, CLEANUP, CONFIGURE, ACTIVATE):
        assert rig.transition(number)
    assert rig.get('pruning.k_local') == 30
    assert rig.get('pruning.history_max') == 11
    assert rig.process.stop(signal.SIGTERM, 30.0) == 0
    assert 'Traceback' not in rig.process.text()


def test_senseless_stamps_and_a_single_glitch_do_no_harm(rig):
    stamp = rig.stamp()
    stamp.sec = -1
    rig.show(stamp=stamp)
    rig.move(stamp=stamp)
    episode = fresh(rig).episode
    assert rig.process.alive()
    # One image from the future: what comes after it is compared with true images again.
    rig.show(stamp=rig.stamp(rig.now() + 60 * 10**9))
    assert rig.feed(60.0, until=lambda: fresh(rig, 1).history_age < 1.0)
    assert rig.stats[-1].episode >= episode


def test_a_clock_that_goes_back_starts_a_new_episode(rig_with):
    from rosgraph_msgs.msg import Clock

    from specprune_ros.nodes.common.qos import every

    rig = rig_with(use_sim_time=True, model__prepare_on_arrival='on')
    clock = rig.node.create_publisher(Clock, '/clock', every())
    # Diagnostics come although no time passes yet.
    assert rig.wait(lambda: rig.diagnoses, 60.0)

    def play(begin, until):
        for tick in range(1200):
            stamp = rig.stamp(round((begin + tick / 20) * 1e9))
            clock.publish(Clock(clock=stamp))
            rig.spin(0.01)
            rig.move(stamp=stamp)
            rig.show(stamp=stamp)
            rig.spin(0.04)
            if rig.stats and until(rig.stats[-1]):
                return True
        return False

    assert rig.wait(lambda: 'active:' in rig.process.text(), 60.0)
    assert play(1000.0, lambda stats: stats.mode != stats.MODE_DENSE)
    episode = rig.stats[-1].episode
    assert play(500.0, lambda stats: stats.episode > episode)
    assert rig.stats[-1].header.stamp.sec in range(500, 561)
    assert 'time went back' in rig.process.text() or 'start' in rig.process.text()
    # No age grows meanwhile, so nothing else would say why there are no chunks.
    assert rig.wait(lambda: rig.health().startswith('the clock stands still'), 20.0), rig.health()


def test_services_and_instructions(rig):
    from std_srvs.srv import SetBool, Trigger

    from specprune_ros.nodes.common.time import stamp_ns

    episode = fresh(rig).episode
    answer = rig.call(Trigger, '/specprune_node/reset', Trigger.Request())
    assert answer.success
    assert fresh(rig, 2).episode == episode + 1
    rig.say('lift the blue cube')
    assert rig.feed(20.0, until=lambda: rig.chunks[-1].instruction == 'lift the blue cube')
    assert fresh(rig, 2).episode == episode + 2

    # Once per chunk of 0.4 s, less the time that a query takes.
    assert rig.set(query_when='chunk') == [(True, '')]
    fresh(rig, 1)
    have = len(rig.chunks)
    assert rig.feed(60.0, until=lambda: len(rig.chunks) >= have + 5)
    stamps = [stamp_ns(chunk) for chunk in rig.chunks[have:]]
    assert np.mean(np.diff(stamps)) > 150_000_000
    assert rig.set(query_when='rate') == [(True, '')]

    logged = len(rig.process.text())
    assert rig.call(SetBool, '/specprune_node/enable', SetBool.Request(data=False)).success
    quiet(rig, lambda: (rig.move(), rig.show()), 'disabled', logged)
    assert rig.call(SetBool, '/specprune_node/enable', SetBool.Request(data=True)).success
    fresh(rig)


def test_the_prior_is_made_anew_in_the_slack(rig):
    assert all(ok for ok, _ in rig.set(pruning__refresh_when='slack', query_rate=1.0))
    have = len(rig.stats)
    assert rig.feed(60.0, until=lambda: sum(s.refreshes for s in rig.stats[have:]) >= 2)
    made = next(s for s in rig.stats[have:] if s.refreshes)
    assert made.prior_valid and made.flops_ratio < 0.9
    # Dense, and accounted for apart from the query.
    assert made.refresh_flops == pytest.approx(made.flops / made.flops_ratio, rel=0.01)
    assert made.refresh_time > 0
    # Once at most between two queries, which keep their period.
    assert max(s.refreshes for s in rig.stats) == 1
    assert rig.feed(20.0, until=lambda: 'given up' in reported(rig, 'refreshes in the slack'))
    assert all(ok for ok, _ in rig.set(pruning__refresh_when='never', query_rate=0.0))
    assert fresh(rig, 3).refreshes == 0


def test_overlays_and_masks_of_kept_patches_come_when_requested(rig):
    from sensor_msgs.msg import Image

    from specprune_ros.nodes.common import patch_mask
    from specprune_ros.nodes.common.images import to_rgb
    from specprune_ros.nodes.common.qos import every

    drawn, masks = [], []
    overlay = rig.node.create_subscription(
        Image, '/specprune_node/overlay/wrist', drawn.append, every()
    )
    assert rig.feed(60.0, until=lambda: len(drawn) >= 2)
    image = to_rgb(drawn[-1])
    assert image.shape == (224, 224, 3)
    # Dropped patches are dark, so the image as a whole is.
    assert image.mean() < 0.8 * rig.pixels[1].mean()

    rig.node.destroy_subscription(overlay)
    rig.node.create_subscription(Image, '/specprune_node/kept/wrist', masks.append, every())
    assert rig.feed(60.0, until=lambda: len(masks) >= 3)
    mask = patch_mask.from_message(masks[-1])
    assert mask.shape == (16, 16)
    assert 0 < (mask >= patch_mask.KEPT).sum() < mask.size
    assert (mask & (patch_mask.BITS['global'] | patch_mask.BITS['local'])).any()
    assert not (mask[mask < patch_mask.KEPT]).any()


@pytest.mark.parametrize('times', [2, pytest.param(10, marks=pytest.mark.slow)])
def test_lifecycle_many_times_and_clean_exits(rig_with, times):
    rig = rig_with(autostart=False, model__prepare_on_arrival='on', base_frame='')
    rig.frame = 'world'  # any will do where none is set
    assert rig.state() == 'unconfigured'
    for cycle in range(times):
        assert rig.transition(CONFIGURE), rig.process.text()
        assert rig.transition(ACTIVATE)
        have = len(rig.chunks)
        assert rig.feed(60.0, until=lambda n=have: len(rig.chunks) > n + 1), cycle
        assert rig.transition(DEACTIVATE)
        rig.spin(0.2)
        have = len(rig.chunks)
        rig.feed(0.3)
        assert len(rig.chunks) == have, 'an inactive node made a chunk'
        assert rig.transition(CLEANUP)
    assert rig.chunks[-1].header.frame_id == '' and 'ee_pose' not in rig.process.text()
    assert rig.set(model__preset='tiny') == [(True, '')]  # unconfigured: may change again
    assert rig.process.stop(patience=30.0) == 0
    assert 'Traceback' not in rig.process.text()


def test_bad_values_at_start_are_refused_and_can_be_mended(rig_with):
    # Two at once: each takes seconds to start.
    rig = rig_with(pruning__history_min=9, pruning__history_max=3)
    wrong_type = rig_with(query_rate='fast')

    assert wrong_type.wait(lambda: not wrong_type.process.alive(), 60.0)
    assert 'query_rate' in wrong_type.process.text()
    assert 'Traceback' not in wrong_type.process.text()
    assert wrong_type.process.stop() == 2

    assert rig.wait(lambda: 'cannot configure' in rig.process.text(), 60.0)
    assert 'history_min' in rig.process.text()
    assert 'Traceback' not in rig.process.text()
    assert rig.state() == 'unconfigured'
    assert rig.wait(lambda: 'history_min' in rig.health())
    assert rig.set(together=True, pruning__history_min=2, pruning__history_max=3)[0]
    assert rig.transition(CONFIGURE), rig.process.text()


def test_start_up_values_are_checked_too(rig_with):
    # One process, each mistake in turn: configuring fails, says why, and can be tried again.
    rig = rig_with(autostart=False)
    for name, wrong, reason in (
        ('cameras', ['agent'], 'cameras names 1 (agent), but the model reads 2'),
        ('model__path', '/nowhere/at/all', '/nowhere/at/all'),
        ('model__preset', 'huge', 'huge'),
        ('model__device', 'cuda:7', 'cuda:7'),
        ('model__random_weights', 'refused', 'random weights are refused'),
        ('proprio__layout', 'none', 'the model reads 8 numbers'),
        (
            'proprio__gripper_joints',
            ['width'],
            'proprio.gripper_joints (observation.gripper_joints',
        ),
    ):
        before = rig.get(name.replace('__', '.'))
        assert rig.set(**{name: wrong}) == [(True, '')]
        assert not rig.transition(CONFIGURE)
        assert reason in rig.process.text()
        assert rig.state() == 'unconfigured'
        rig.set(**{name: before})
    assert rig.transition(CONFIGURE), rig.process.text()
    assert rig.transition(CLEANUP)
    # A refused activation leaves no subscriptions.
    assert all(ok for ok, _ in rig.set(speed__source='joint_states', robot_description='<robot'))
    assert rig.transition(CONFIGURE), rig.process.text()
    assert not rig.transition(ACTIVATE)
    assert 'robot_description does not parse' in rig.process.text()
    assert rig.state() == 'inactive'
    assert rig.wait(lambda: rig.images['agent'].get_subscription_count() == 0)
    assert 'Traceback' not in rig.process.text()


def test_signals_while_it_starts_loads_or_warms_up_leave_no_traceback(rig_with):
    """At once: each takes seconds to start. Large enough to be loading when the signal comes."""
    rigs = [rig_with(model__preset='oft-medium') for _ in range(3)]

    def end(rig, seconds):
        rig.spin(seconds)
        assert rig.process.stop(patience=30.0) == 0, rig.process.text()
        assert 'Traceback' not in rig.process.text()

    # From its first lines on, which the caught SIGTERM shows; before them the process is Python's.
    assert rigs[0].wait(lambda: rigs[0].process.catches(signal.SIGTERM), 60.0)
    end(rigs[0], 0.0)
    for rig, seconds in zip(rigs[1:], (0.0, 1.0), strict=True):
        assert rig.wait(lambda rig=rig: 'loading' in rig.process.text(), 90.0)
        end(rig, seconds)


def test_bad_images_make_no_chunks_and_say_why(rig):
    def spoiled(**fields):
        def change(message):
            for name, value in fields.items():
                setattr(message, name, value)

        return lambda: (rig.move(), rig.show(change=change))

    # Two of the faults of test_images, which has all.
    quiet(rig, spoiled(encoding='yuv422'), "encoding 'yuv422' is not read")
    quiet(rig, spoiled(width=7680, height=4320), '7680 x 4320')
    assert rig.diagnostic('images prepared') == 'on arrival'
    assert rig.diagnostic('engine') == 'eager'
    fresh(rig)
    hour = 3600 * 10**9
    quiet(rig, lambda: (rig.move(), rig.show(stamp=rig.stamp(rig.now() - hour))), 's old')
    fresh(rig)
    quiet(
        rig,
        lambda: (rig.move(), rig.show(stamp=rig.stamp(rig.now() + hour))),
        'ahead of this node',
    )
    fresh(rig)
    quiet(rig, lambda: (rig.move(), rig.show(cameras=['agent'])), "camera 'wrist'")
    fresh(rig)


def test_bad_state_and_instructions_make_no_chunks_and_say_why(rig):
    names = ['joint1', 'finger_joint1', 'finger_joint2']
    quiet(rig, lambda: (rig.move(positions=[math.nan] * 9), rig.show()), 'proprioception')
    fresh(rig)
    quiet(rig, lambda: (rig.move(names=['elbow', 'thumb', 'toe']), rig.show()), 'finger_joint1')
    fresh(rig)
    many = [*(f'joint{i}' for i in range(300)), 'finger_joint1', 'finger_joint2']
    quiet(rig, lambda: (rig.move(names=many), rig.show()), '302 names; at most 256 are read')
    fresh(rig)

    def turned():
        rig.move(pose=False)
        rig.pose_alone(frame='world')
        rig.show()

    quiet(rig, turned, "ee_pose: is in frame 'world', but the profile's base_frame is 'base_link'")
    assert rig.feed(60.0, until=lambda: 'no chunk' not in rig.health())
    quiet(rig, lambda: rig.show(), 'proprioception')
    assert rig.feed(60.0, until=lambda: 'no chunk' not in rig.health())
    # The pose goes on, but nobody measures the fingers any more.
    quiet(rig, lambda: (rig.pose_alone(), rig.show()), 'proprioception')
    assert rig.feed(60.0, until=lambda: 'no chunk' not in rig.health())
    for text, reason in (('', 'the instruction is empty'), ('x' * 10_000, '10000 characters')):
        rig.say(text)
        quiet(rig, lambda: (rig.move(names=names), rig.show()), reason)
    rig.say('lift the green cube')
    fresh(rig)


def test_speed_from_joint_states_steers_and_bad_joints_mean_care(rig_with):
    from std_msgs.msg import String

    from specprune_ros.sim.arm.urdf import urdf

    rig = rig_with(speed__source='joint_states')
    rig.description.publish(String(data='<robot'))
    running(rig)
    # Another process reads it first.
    assert rig.feed(60.0, until=lambda: 'robot_description does not parse' in rig.process.text())
    assert 'speed unknown' in rig.stats[-1].reason
    rig.description.publish(String(data=urdf()))
    assert rig.feed(60.0, until=lambda: rig.stats[-1].speed_source == 'joint_states')
    stats = fresh(rig)
    assert stats.mode == stats.MODE_FINE
    assert stats.speed_translation == pytest.approx(0.0, abs=1e-9)
    assert 0.0 <= stats.speed_age < 0.5
    # Joints that do not match: the speed grows old, and chunks go on with care.
    names = ['a', 'b', 'finger_joint1', 'finger_joint2']
    for _ in range(600):
        rig.move(names=names)
        rig.show()
        rig.spin(0.05)
        if 'old' in rig.stats[-1].reason:
            break
    assert rig.stats[-1].mode == stats.MODE_FINE and 'speed is' in rig.stats[-1].reason
