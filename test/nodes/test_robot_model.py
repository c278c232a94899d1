"""Robots as the page draws them: joints, meshes, colours, and what cannot be drawn."""

from importlib.util import find_spec

import numpy as np
import pytest

trimesh = pytest.importorskip('trimesh', reason='trimesh is not installed: requirements/view.txt')

from specprune_ros.nodes.viewer_node.robot_model import RobotModel, RobotModelError  # noqa: E402
from specprune_ros.sim.arm.rizon4 import HOME, JOINT_NAMES  # noqa: E402
from specprune_ros.sim.arm.urdf import urdf  # noqa: E402

LINK = '<link name="{0}"><visual><geometry>{1}</geometry></visual></link>'


def two_links(shape, kind='continuous', name='turn'):
    return (
        '<robot name="r">'
        + LINK.format('base', '<sphere radius="0.1"/>')
        + LINK.format('arm', shape)
        + f'<joint name="{name}" type="{kind}"><parent link="base"/><child link="arm"/>'
        '<origin xyz="0 0 1"/><axis xyz="0 0 1"/>'
        '<limit lower="-3" upper="3" effort="1" velocity="1"/></joint></robot>'
    )


def test_the_simulated_arm_is_where_the_simulator_has_it():
    from specprune_ros.sim.arm.world import World

    world = World()
    robot = RobotModel(urdf())
    assert robot.move(dict(zip(world.joint_names, world.joint_positions, strict=True)))
    position, _ = robot.frame('tcp')
    np.testing.assert_allclose(position, world.tcp_pose()[0], atol=1e-6)


def test_the_simulated_arm_has_the_shapes_of_the_scene():
    """Each visual of the URDF lies where MuJoCo has the geom it was made from."""
    import mujoco

    from specprune_ros.sim.arm.scene import arm_shapes, scene_xml

    model = mujoco.MjModel.from_xml_string(scene_xml())
    data = mujoco.MjData(model)
    data.qpos[:7] = HOME
    mujoco.mj_forward(model, data)
    robot = RobotModel(urdf())
    robot.move(dict(zip(JOINT_NAMES, [*HOME, 0.0, 0.0], strict=True)))
    names = set(arm_shapes())
    wanted = [
        data.geom_xpos[i]
        for i in range(model.ngeom)
        if model.body(model.geom_bodyid[i]).name in names
    ]
    drawn = []
    for visual in robot.visuals:
        position, wxyz = robot.pose_of_joint(visual.joint)
        turn = trimesh.transformations.quaternion_matrix(wxyz)[:3, :3]
        drawn.append(position + turn @ visual.position)
    for place in wanted:
        assert min(np.linalg.norm(place - at) for at in drawn) < 1e-5
    assert len(wanted) > 20


def test_a_continuous_joint_turns():
    robot = RobotModel(two_links('<box size="1 1 1"/>'))
    assert robot.move({'turn': np.pi / 2, 'nobody': 1.0})
    position, wxyz = robot.pose_of_joint(1)
    np.testing.assert_allclose(position, [0, 0, 1])
    np.testing.assert_allclose(np.abs(wxyz), [0.5**0.5, 0, 0, 0.5**0.5], atol=1e-9)
    assert not robot.move({'turn': float('nan')})
    np.testing.assert_allclose(np.abs(robot.pose_of_joint(1)[1]), np.abs(wxyz))


def test_names_with_a_serial_number_are_found():
    robot = RobotModel(two_links('<box size="1 1 1"/>', name='R4-1_turn'), prefix='R4-1_')
    assert robot.move({'turn': 1.0})


def test_a_mesh_is_loaded_from_its_package_and_a_missing_one_is_named(tmp_path):
    mesh = tmp_path / 'share' / 'my_arm' / 'arm.stl'
    mesh.parent.mkdir(parents=True)
    trimesh.creation.box((0.1, 0.2, 0.3)).export(mesh)
    text = two_links('<mesh filename="package://my_arm/arm.stl" scale="2 2 2"/>')
    robot = RobotModel(text, [tmp_path / 'share'])
    assert not robot.missing
    np.testing.assert_allclose(robot.visuals[1].mesh.extents, [0.2, 0.4, 0.6], atol=1e-6)
    without = RobotModel(text, [])
    assert without.missing == ['package://my_arm/arm.stl']
    assert len(without.visuals) == 1


@pytest.mark.parametrize('name', ['/etc/passwd', 'file:///etc/passwd', 'package://../../etc/x'])
def test_nothing_but_meshes_is_opened(name):
    robot = RobotModel(two_links(f'<mesh filename="{name}"/>'))
    assert robot.missing == [name]


@pytest.mark.parametrize('text', ['', '<robot', '<robot name="r"/>', 'x' * 5_000_000])
def test_what_is_no_robot_is_refused(text):
    with pytest.raises(RobotModelError):
        RobotModel(text)


DAE = """<?xml version="1.0"?>
<COLLADA xmlns="http://www.collada.org/2005/11/COLLADASchema" version="1.4.1">
<asset><unit meter="1" name="meter"/><up_axis>Z_UP</up_axis></asset>
<library_geometries><geometry id="g"><mesh>
<source id="p"><float_array id="a" count="9">0 0 0 1 0 0 0 1 0</float_array><technique_common>
<accessor source="#a" count="3" stride="3"><param name="X" type="float"/>
<param name="Y" type="float"/><param name="Z" type="float"/></accessor>
</technique_common></source>
<vertices id="v"><input semantic="POSITION" source="#p"/></vertices>
<triangles count="1"><input semantic="VERTEX" source="#v" offset="0"/><p>0 1 2</p></triangles>
</mesh></geometry></library_geometries>
<library_visual_scenes><visual_scene id="s"><node id="n"><instance_geometry url="#g"/></node>
</visual_scene></library_visual_scenes>
<scene><instance_visual_scene url="#s"/></scene></COLLADA>
"""


def test_a_mesh_that_cannot_be_read_is_refused(tmp_path):
    mesh = tmp_path / 'arm.stl'
    mesh.write_bytes(b'solid' + bytes(range(256)))
    with pytest.raises(RobotModelError, match='robot_description'):
        RobotModel(two_links(f'<mesh filename="file://{mesh}"/>'))
    # Pinocchio reads COLLADA by itself, and trimesh with another package only.
    mesh = tmp_path / 'arm.dae'
    mesh.write_text(DAE)
    text = two_links(f'<mesh filename="file://{mesh}"/>')
    if find_spec('collada') is not None:
        assert len(RobotModel(text).visuals) == 2
        return
    with pytest.raises(RobotModelError, match='robot_description: ImportError.*pycollada'):
        RobotModel(text)
