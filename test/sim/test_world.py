"""The arm's world: commands, state, images, and that its URDF tells the same story."""

import numpy as np
import pinocchio as pin
import pytest

from specprune_ros.sim.arm.layout import Layout, Thing
from specprune_ros.sim.arm.render_backend import NoRenderer
from specprune_ros.sim.arm.urdf import TCP_FRAME, urdf
from specprune_ros.sim.arm.world import START_POSITION, World

NOMINAL = Layout(cubes=(Thing('red', 0.5, -0.2, 0.3), Thing('blue', 0.65, 0.0)))


@pytest.fixture(scope='module')
def world():
    made = World()
    yield made
    made.close()


@pytest.fixture(scope='module')
def arm():
    model = pin.buildModelFromXML(urdf())
    return model, model.createData()


def test_start_pose_points_down(world):
    world.reset(layout=NOMINAL)
    position, (x, y, z, w) = world.tcp_pose()
    assert np.allclose(position, START_POSITION, atol=1e-3)
    tool_x = np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])
    assert np.allclose(tool_x, [0, 0, -1], atol=2e-3)


def test_pose_command_is_reached_and_held(world):
    world.reset(layout=NOMINAL)
    _, quaternion = world.tcp_pose()
    world.command_pose((0.6, -0.2, 0.12), quaternion)
    world.advance(2.0)
    assert np.allclose(world.tcp_pose()[0], (0.6, -0.2, 0.12), atol=1e-3)
    world.advance(1.0)
    assert np.linalg.norm(world.tcp_twist()[0]) < 1e-4
    assert world.collision == ''


def test_twist_command_gives_that_velocity_until_hold(world):
    world.reset(layout=NOMINAL)
    world.command_twist((0.06, -0.03, 0.02), (0.0, 0.1, -0.3))
    world.advance(0.6)
    linear, angular = world.tcp_twist()
    assert np.allclose(linear, (0.06, -0.03, 0.02), atol=1e-3)
    assert np.allclose(angular, (0.0, 0.1, -0.3), atol=5e-3)
    world.hold()
    world.advance(0.5)
    assert np.linalg.norm(world.tcp_twist()[0]) < 1e-3


def test_gripper_opens_and_closes_on_a_cube(world):
    world.reset(layout=NOMINAL)
    _, quaternion = world.tcp_pose()
    world.command_gripper(0.0)
    world.advance(1.0)
    assert world.gripper_opening < 0.02
    world.command_gripper(0.5)
    world.advance(1.0)
    assert world.gripper_opening == pytest.approx(0.5, abs=0.02)
    world.reset(layout=Layout(cubes=(Thing('red', 0.55, -0.1),)))
    for height, opening in ((0.1, 1.0), (0.02, 1.0), (0.02, 0.0), (0.15, 0.0)):
        world.command_pose((0.55, -0.1, height), quaternion)
        world.command_gripper(opening)
        world.advance(1.2)
    assert world.thing_pose('cube0')[0][2] > 0.12
    assert 0.4 < world.gripper_opening < 0.7


def test_urdf_velocity_equals_mujocos(world, arm):
    """Pinocchio on robot_description against MuJoCo's own velocity of the tool centre point."""
    model, data = arm
    assert tuple(model.names)[1:] == world.joint_names
    frame = model.getFrameId(TCP_FRAME)
    rng = np.random.default_rng(0)
    world.reset(seed=4)
    compared = 0
    for _ in range(12):
        world.command_twist(rng.uniform(-0.15, 0.15, 3), rng.uniform(-0.8, 0.8, 3))
        for _ in range(6):
            world.advance(1 / 30)
            q, v = world.joint_positions, world.joint_velocities
            pin.forwardKinematics(model, data, q, v)
            pin.updateFramePlacements(model, data)
            motion = pin.getFrameVelocity(model, data, frame, pin.LOCAL_WORLD_ALIGNED)
            linear, angular = world.tcp_twist()
            assert np.allclose(data.oMf[frame].translation, world.tcp_pose()[0], atol=1e-6)
            if np.linalg.norm(linear) > 0.02:
                error = np.linalg.norm(motion.linear - linear) / np.linalg.norm(linear)
                assert error < 0.01
                assert np.allclose(motion.angular, angular, atol=1e-6)
                compared += 1
    assert compared > 50


def test_urdf_velocity_is_the_derivative_of_position(world, arm):
    """An independent check, from positions 8 ms apart: both velocities cannot be wrong alike."""
    world.reset(seed=4)
    world.command_twist((0.1, 0.05, 0.0), (0, 0, 0.4))
    world.advance(0.5)
    before = world.tcp_pose()[0]
    world.advance(0.004)
    linear = world.tcp_twist()[0]
    world.advance(0.004)
    assert np.allclose((world.tcp_pose()[0] - before) / 0.008, linear, atol=5e-4)


def test_same_seed_and_commands_give_the_same_states_and_images(world):
    def play():
        world.reset(seed=11)
        world.command_twist((0.05, 0.1, -0.2), (0, 0, 1))
        for _ in range(20):
            world.advance(1 / 30)
        return world.joint_positions, world.thing_pose('cube1')[0], world.render('agent')

    first, second = play(), play()
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a, b)
    world.reset(seed=12)
    assert not np.array_equal(world.render('agent'), first[2])


def test_no_time_is_lost_over_many_calls(world):
    world.reset(layout=NOMINAL)
    for _ in range(300):
        world.advance(1 / 30)
    assert world.time == pytest.approx(10.0, abs=0.005)


@pytest.mark.parametrize('camera', ['agent', 'wrist'])
def test_images_show_the_scene(world, camera):
    world.reset(layout=NOMINAL)
    image = world.render(camera)
    assert image.shape == (224, 224, 3) and image.dtype == np.uint8
    red = (image[..., 0] > 110) & (image[..., 1:].max(-1) < 60)
    assert red.sum() > 40  # the red cube is in view
    world.reset(layout=Layout(cubes=(Thing('blue', 0.5, -0.2),)))
    image = world.render(camera)
    assert ((image[..., 0] > 110) & (image[..., 1:].max(-1) < 60)).sum() == 0


def test_pressing_on_the_table_is_a_collision(world):
    world.reset(layout=Layout(cubes=()))
    world.command_twist((0, 0, -0.2), (0.6, 0, 0))  # tilted, so that a finger digs in
    world.advance(2.5)
    assert 'table' in world.collision


def test_limits_hold_under_absurd_commands(world):
    world.reset(layout=NOMINAL)
    world.command_twist((50, 50, 50), (90, -90, 90))
    lower = np.array([-2.8798, -2.3562, -3.0543, -1.9548, -3.0543, -1.4835, -3.0543])
    upper = np.array([2.8798, 2.3562, 3.0543, 2.7751, 3.0543, 4.6251, 3.0543])
    limit = np.array([2.0944, 2.0944, 2.4435, 2.4435, 4.8869, 4.8869, 4.8869])
    for _ in range(60):
        world.advance(1 / 30)
        joints = world.joint_positions[:7]
        assert np.isfinite(joints).all()
        assert (joints > lower - 0.02).all() and (joints < upper + 0.02).all()
        assert (np.abs(world.joint_velocities[:7]) < 1.6 * limit).all()


@pytest.mark.parametrize(
    ('call', 'field'),
    [
        (lambda w: w.command_twist((0, np.nan, 0), (0, 0, 0)), 'linear'),
        (lambda w: w.command_twist((0, 0, 0), (np.inf, 0, 0)), 'angular'),
        (lambda w: w.command_twist((0, 0), (0, 0, 0)), 'linear'),
        (lambda w: w.command_pose((np.nan, 0, 0), (0, 0, 0, 1)), 'position'),
        (lambda w: w.command_pose((0, 0, 0), (0, 0, 0, 0)), 'quaternion'),
        (lambda w: w.command_gripper(np.nan), 'opening'),
        (lambda w: w.command_gripper(1.5), 'opening'),
        (lambda w: w.advance(-1), 'seconds'),
        (lambda w: w.render('nose'), 'camera'),
        (lambda w: World(image_size=(4, 4)), 'image_size'),
        (lambda w: World(cameras=('agent', 'nose')), 'cameras'),
    ],
)
def test_bad_input_names_the_field(world, call, field):
    with pytest.raises(ValueError, match=field):
        call(world)


def test_a_refused_command_changes_nothing(world):
    world.reset(layout=NOMINAL)
    world.command_twist((0.05, 0, 0), (0, 0, 0))
    with pytest.raises(ValueError, match='linear'):
        world.command_twist((np.nan, 0, 0), (0, 0, 0))
    world.advance(0.5)
    assert np.allclose(world.tcp_twist()[0], (0.05, 0, 0), atol=1e-3)


def test_no_renderer_is_said_only_when_rendering(monkeypatch):
    from specprune_ros.sim.arm import world as module

    monkeypatch.setattr(module, '_NO_RENDERER', NoRenderer('nothing here'))
    blind = World()
    blind.advance(0.1)
    with pytest.raises(NoRenderer, match='nothing here'):
        blind.render('agent')


@pytest.mark.parametrize('camera', ['agent', 'wrist'])
def test_projection_falls_on_the_cube(world, camera):
    world.reset(layout=Layout(cubes=(Thing('blue', 0.5, -0.2, 0.4),)))
    right, down = world.project(camera, world.thing_pose('cube0')[0])
    image = world.render(camera)
    pixel = image[int(down * 224), int(right * 224)].astype(int)
    assert pixel[2] > 1.5 * pixel[0] and pixel[2] > 1.5 * pixel[1]
