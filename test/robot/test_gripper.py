import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprune_ros.robot.gripper import GoalState, GripperGoal, GripperHysteresis


def feed(gripper, openings, period_ns=10_000_000):
    return [gripper.update(x, i * period_ns) for i, x in enumerate(openings)]


def test_sent_on_change_only():
    assert feed(GripperHysteresis(), [1, 1, 0.9, 0, 0, 1]) == [1.0, None, None, 0.0, None, 1.0]


def test_hovering_about_the_middle_sends_nothing():
    gripper = GripperHysteresis()
    feed(gripper, [1.0])
    assert feed(gripper, [0.55, 0.45, 0.5, 0.41, 0.59] * 20) == [None] * 100
    assert gripper.sent == 1.0


@given(st.lists(st.floats(-1, 2), max_size=200))
def test_commands_alternate(openings):
    sent = [x for x in feed(GripperHysteresis(), openings) if x is not None]
    assert all(a != b for a, b in zip(sent, sent[1:], strict=False))
    assert set(sent) <= {0.0, 1.0}


def test_nothing_finite_nothing_sent():
    assert feed(GripperHysteresis(), [math.nan, math.inf, -math.inf]) == [None] * 3


def test_continuous_sends_beyond_the_deadband():
    gripper = GripperHysteresis(continuous=True, deadband=0.1)
    assert feed(gripper, [0.5, 0.55, 0.62, 0.6, 1.7]) == [0.5, None, 0.62, None, 1.0]


def test_dwell_waits_for_a_lasting_change():
    gripper = GripperHysteresis(dwell_s=0.05)
    feed(gripper, [1.0])
    assert feed(gripper, [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]) == [None] * 6  # 10 ms apart
    assert gripper.update(0.0, 80_000_000) == 0.0


def test_a_clock_that_went_back_does_not_lengthen_the_dwell():
    gripper = GripperHysteresis(dwell_s=0.5)
    assert gripper.update(1.0, 1000 * SECOND) == 1.0
    assert gripper.update(0.0, 1001 * SECOND) is None
    assert gripper.update(0.0, 1 * SECOND) is None
    assert gripper.update(0.0, 2 * SECOND) == 0.0


def test_reset_sends_again():
    gripper = GripperHysteresis()
    feed(gripper, [1.0])
    gripper.reset()
    assert gripper.update(1.0, 0) == 1.0


def test_thresholds_must_ascend():
    with pytest.raises(ValueError, match='must ascend'):
        GripperHysteresis(close_below=0.7, open_above=0.3)


SECOND = 1_000_000_000


def _goal(**options) -> GripperGoal:
    goal = GripperGoal(retries=2, retry_s=0.5, **options)
    goal.want(0.0)
    return goal


def test_a_refused_goal_is_sent_again_and_then_given_up():
    goal, sent = _goal(), []
    for tick in range(300):
        now = tick * SECOND // 100
        if (opening := goal.due(now, ready=True)) is not None:
            sent.append((now, opening))
            goal.failed(goal.number, 'refused', now)
    assert [now for now, _ in sent] == [0, SECOND // 2, SECOND]
    assert goal.state is GoalState.FAILED
    assert goal.trouble == 'refused, sent 3 of 3 times'
    goal.want(1.0)
    assert goal.due(4 * SECOND, ready=True) == 1.0 and not goal.trouble


def test_a_goal_that_nobody_answers_is_sent_again_and_one_that_is_accepted_may_take_its_time():
    goal = _goal()
    sent = [now for now in range(0, 10 * SECOND, SECOND // 10) if goal.due(now, True) is not None]
    assert len(sent) == 3 and 2 * SECOND < sent[1] - sent[0] < 3 * SECOND
    assert goal.trouble == 'goal not answered, sent 3 of 3 times'
    goal.want(1.0)
    assert goal.due(0, ready=True) == 1.0
    goal.accepted(goal.number)
    assert goal.due(60 * SECOND, ready=True) is None and goal.state is GoalState.MOVING


def test_an_aborted_grasp_is_success_where_the_driver_means_a_stall_by_it():
    for stall_is_success, state in ((True, GoalState.DONE), (False, GoalState.RETRYING)):
        goal = _goal(stall_is_success=stall_is_success)
        goal.due(0, ready=True)
        goal.failed(goal.number, 'aborted', 0, stalled=True)
        assert goal.state is state
    opening = GripperGoal(stall_is_success=True)
    opening.want(1.0)
    opening.due(0, ready=True)
    opening.failed(opening.number, 'aborted', 0, stalled=True)
    assert opening.state is GoalState.RETRYING  # nothing is held by opening


def test_a_restarted_server_is_notified_again():
    goal = _goal()
    assert goal.due(0, ready=False) is None
    assert goal.due(0, ready=True) == 0.0
    goal.succeeded(goal.number)
    assert goal.state is GoalState.DONE and goal.due(1, ready=True) is None
    assert goal.due(2, ready=False) is None
    assert goal.due(3, ready=True) == 0.0


def test_the_answer_to_an_earlier_goal_does_not_count():
    goal = _goal()
    goal.due(0, ready=True)
    first = goal.number
    goal.want(1.0)
    goal.due(1, ready=True)
    goal.succeeded(first)
    goal.failed(first, 'aborted', 1)
    assert goal.state is GoalState.MOVING
    goal.succeeded(goal.number)
    assert goal.state is GoalState.DONE
