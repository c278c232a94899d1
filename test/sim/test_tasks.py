"""Episodes: fixed by their seed, judged from the state, and doable: the expert does them."""

import numpy as np
import pytest

from specprune_ros.sim.arm.layout import COLOURS, Layout, NoRoom, Thing, random_layout
from specprune_ros.sim.arm.world import World
from specprune_ros.sim.evaluation.episode import apply, observe, play, play_expert
from specprune_ros.sim.tasks.expert import Expert
from specprune_ros.sim.tasks.tasks import (
    FAMILIES,
    Judge,
    Task,
    layout_for,
    make_episode,
    named_task,
    wrong_colour,
)
from specprune_ros.sim.tasks.vocabulary import compounds, instructions, vocabulary


@pytest.fixture(scope='module')
def world():
    made = World(image_size=(64, 64))
    yield made
    made.close()


@pytest.mark.parametrize('episodes', [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize('family', FAMILIES)
def test_expert_does_its_tasks(world, family, episodes):
    """10 of 10 here; 500 of 500 on each family when measured."""
    played = [play_expert(world, make_episode(seed, family)) for seed in range(episodes)]
    assert [p.outcome for p in played] == ['success'] * episodes


@pytest.mark.parametrize('family', FAMILIES)
def test_a_seed_fixes_an_episode_wholly(world, family):
    first = play_expert(world, make_episode(7, family))
    pose = np.array(world.joint_positions)
    second = play_expert(world, make_episode(7, family))
    assert (first.outcome, first.steps) == (second.outcome, second.steps)
    assert np.array_equal(pose, world.joint_positions)
    assert make_episode(7, family) == make_episode(7, family) != make_episode(8, family)


def test_scenes_vary_and_colours_are_balanced():
    layouts = [make_episode(seed, 'lift').layout for seed in range(40)]
    assert len({layout.light for layout in layouts}) == 40
    assert len({layout.camera_shift for layout in layouts}) == 40
    assert {len(layout.plates) for layout in layouts} == {0, 1}
    assert {len(layout.distractors) for layout in layouts} == {0, 1}
    turns = [thing.yaw for layout in layouts for thing in layout.cubes]
    assert min(turns) < -2 and max(turns) > 2
    episodes = [make_episode(seed, 'lift') for seed in range(600)]
    named = [episode.layout.cubes[episode.task.cube].colour for episode in episodes]
    shares = {colour: named.count(colour) / len(named) for colour in COLOURS}
    assert all(0.1 < share < 0.24 for share in shares.values()), shares


def test_things_do_not_touch_at_the_start(world):
    for seed in range(30):
        episode = make_episode(seed, 'put')
        world.reset(seed, episode.layout)
        for first, second in (('cube', 'cube'), ('cube', 'plate'), ('cube', 'finger')):
            assert not world.touches(first, second), seed


@pytest.mark.slow
def test_nothing_is_won_by_doing_nothing(world):
    for family in FAMILIES:
        for seed in range(3):
            still = np.zeros((8, 7))
            still[:, 6] = 1.0
            played = play(
                world, make_episode(seed, family), lambda _, s=still: s, executed=8, blind=True
            )
            assert played.outcome == 'time_out'


@pytest.mark.slow
def test_the_wrong_cube_does_not_count(world):
    """The expert on another cube of the scene: the instructed one is judged."""
    for family in ('move', 'lift'):
        for seed in range(3):
            episode = make_episode(seed, family)
            other = (episode.task.cube + 1) % len(episode.layout.cubes)
            world.reset(seed, episode.layout)
            expert = Expert(world, Task(family, '', other))
            played = play(world, episode, lambda _, e=expert: e()[None], executed=1, blind=True)
            assert played.outcome == 'time_out'


def test_wrong_colour_names_another_cube_of_the_scene():
    for seed in range(20):
        episode = make_episode(seed, 'put')
        words = wrong_colour(episode)
        there = {thing.colour for thing in episode.layout.cubes}
        named = words.split(' cube')[0].split()[-1]
        assert named in there
        assert named != episode.layout.cubes[episode.task.cube].colour


def test_put_needs_the_cube_let_go(world):
    episode = make_episode(3, 'put')
    world.reset(episode.seed, episode.layout)
    judge, expert = Judge(world, episode.task), Expert(world, episode.task)
    for _ in range(300):
        action = expert()
        if action[6] > 0.5 and expert.holds(
            world.tcp_pose()[0],
            world.thing_pose(f'cube{episode.task.cube}')[0],
            episode.task.cube,
        ):
            break  # about to let go
        apply(world, action)
        assert judge.step() == 'running'
    assert world.thing_pose(f'cube{episode.task.cube}')[0][2] < 0.05
    for _ in range(10):
        apply(world, np.zeros(7))  # keeps it closed
        assert judge.step() == 'running'


def test_a_collision_ends_the_episode(world):
    # Straight down beside the cubes, fingers into the table, is what the workspace box forbids;
    # pressing the hand onto a cube is not.
    layout = Layout(cubes=(Thing('red', 0.56, -0.113, 0.0), Thing('blue', 0.68, 0.0)))
    world.reset(0, layout)
    judge = Judge(world, Task('lift', 'lift the blue cube', 1))
    down = np.array([0, 0, -0.02, 0.12, 0, 0, 0.0])
    while judge.step() == 'running':
        apply(world, down)
    assert judge.outcome == 'collision' and world.collision


def test_named_task_reads_free_instructions(world):
    world.reset(0, Layout(cubes=(Thing('red', 0.5, -0.1),), plates=(Thing('blue', 0.6, 0.0),)))
    assert named_task(world, 'Raise the red cube ') == Task('lift', 'raise the red cube', 0)
    assert named_task(world, 'put the red cube on the blue plate').plate == 0
    with pytest.raises(ValueError, match='red cube, blue plate'):
        named_task(world, 'lift the green cube')
    episode = make_episode(2, 'two_step')
    world.reset(episode.seed, episode.layout)
    assert named_task(world, episode.task.instruction) == episode.task
    assert {plate for _, plate in episode.task.parts} == {0, 1}


def test_a_scene_for_instructions_holds_what_they_name(world):
    requested = ['lift the green cube', 'put the red cube on the purple plate', 'hop']
    for seed in range(5):
        layout = layout_for(requested, seed)
        world.reset(seed, layout)
        assert (
            named_task(world, requested[0]).family == 'lift'
            and named_task(world, requested[1]).plate is not None
        )
        assert len({thing.colour for thing in layout.cubes}) == 4
        assert len({thing.colour for thing in layout.plates}) == 2
    assert layout_for(requested, 1) == layout_for(requested, 1) != layout_for(requested, 2)
    with pytest.raises(ValueError, match='3 plates'):
        layout_for([f'put the red cube on the {c} plate' for c in ('red', 'blue', 'green')])


def test_every_instruction_is_covered_by_the_vocabulary():
    words = set(vocabulary())
    assert all(word in words for instruction in instructions() for word in instruction.split())
    assert len(compounds()) == 24
    assert len(list(instructions())) == 3 * 6 + 3 * 6 + 3 * 36 + 3 * 30 * 30


def test_look_has_what_a_policy_needs(world):
    world.reset(1)
    seen = observe(world, 'lift the red cube')
    assert set(seen.images) == {'agent', 'wrist'} and seen.proprio.shape == (8,)
    assert np.allclose(seen.proprio[3:6], (0, np.pi / 2, 0), atol=0.2)  # tool down, no jump near
    assert all(not p.any() for p in observe(world, 'x', blind=True).images.values())


def test_bad_input_names_the_field(world):
    with pytest.raises(ValueError, match='family'):
        make_episode(0, 'dance')
    with pytest.raises(ValueError, match='unknown colour'):
        Layout(cubes=(Thing('pink', 0.5, 0.0),))
    with pytest.raises(ValueError, match='layout.plates'):
        Layout(cubes=(), plates=(Thing('red', 0.5, 0.0),) * 3)
    with pytest.raises(NoRoom, match='12'):
        random_layout(np.random.default_rng(0), cubes=4, plates=8)
    with pytest.raises(ValueError, match='runner'):
        play(world, make_episode(0, 'move'), lambda _: np.zeros(7), blind=True)
    with pytest.raises(ValueError, match='finite'):
        play(world, make_episode(0, 'move'), lambda _: np.full((8, 7), np.nan), blind=True)
