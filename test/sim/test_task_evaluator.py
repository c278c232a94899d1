"""Judging what is said while the arm runs: by true state, from the moment it is said."""

import pytest

from specprune_ros.sim.arm.world import World
from specprune_ros.sim.evaluation.episode import apply
from specprune_ros.sim.tasks.expert import Expert
from specprune_ros.sim.tasks.task_evaluator import TaskEvaluator
from specprune_ros.sim.tasks.tasks import TIME_LIMIT, layout_for, named_task

LIFT, MOVE = 'lift the blue cube', 'move above the red cube'


@pytest.fixture(scope='module')
def world():
    return World()


@pytest.fixture
def task_evaluator(world):
    world.reset(0, layout_for([LIFT, MOVE]))
    return TaskEvaluator(world)


def obey(world, task_evaluator, words, seconds=20.0):
    """Let the expert do it in ticks as short as a driver's; the verdict."""
    expert = Expert(world, named_task(world, words))
    while world.time < seconds:
        action = expert()
        action[:6] /= 10  # the same motion, cut in ten
        for _ in range(10):
            apply(world, action, 0.01)
            if (verdict := task_evaluator.step()) is not None:
                return verdict
    raise AssertionError('no verdict')


def test_one_instruction_after_another_each_from_when_it_was_said(world, task_evaluator):
    assert task_evaluator.verdict.outcome == 'waiting' and task_evaluator.step() is None
    assert task_evaluator.on_instruction(LIFT).outcome == 'running'
    first = obey(world, task_evaluator, LIFT)
    assert (first.instruction, first.outcome, first.number) == (LIFT, 'success', 1)
    assert 0.3 <= first.seconds < TIME_LIMIT['lift']
    assert task_evaluator.step() is None  # said once
    task_evaluator.on_instruction(MOVE)
    begin = world.time
    second = obey(world, task_evaluator, MOVE)
    assert second.success and second.number == 2
    assert second.seconds == pytest.approx(world.time - begin, abs=0.02)
    assert task_evaluator.clear().outcome == 'waiting'


def test_an_idle_arm_runs_out_of_time(world, task_evaluator):
    task_evaluator.on_instruction(MOVE)
    verdicts = []
    while world.time < TIME_LIMIT['move'] + 0.5:
        world.advance(0.011)
        verdicts.append(task_evaluator.step())
    (verdict,) = [v for v in verdicts if v]
    assert verdict.outcome == 'time_out'
    assert verdict.seconds == pytest.approx(TIME_LIMIT['move'], abs=0.15)


def test_what_cannot_be_judged_is_unknown_and_says_what_is_there(world, task_evaluator):
    task_evaluator.on_instruction(MOVE)
    verdict = task_evaluator.on_instruction('juggle the red cube')
    assert verdict.outcome == 'unknown' and verdict.final and not verdict.success
    assert 'red cube' in verdict.detail and 'plate' in verdict.detail
    world.advance(0.5)
    assert task_evaluator.step() is None


def test_a_collision_belongs_to_the_instruction_it_came_with(world, task_evaluator):
    task_evaluator.on_instruction(MOVE)
    world.collision = 'link7 on table, 90 N'
    world.advance(0.1)
    verdict = task_evaluator.step()
    assert (verdict.outcome, verdict.detail) == ('collision', 'link7 on table, 90 N')
    assert task_evaluator.on_instruction(LIFT).outcome == 'running'
    world.advance(0.1)
    assert task_evaluator.step() is None
