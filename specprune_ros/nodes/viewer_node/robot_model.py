"""A URDF as meshes that follow its joints: Pinocchio reads it, the page draws it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pinocchio as pin
import trimesh

from specprune_ros.bounded_files import reason
from specprune_ros.robot import description

MESH_TYPES = ('.stl', '.obj', '.dae', '.ply', '.glb')
SECTIONS = 24  # edges of a round shape


class RobotModelError(ValueError):
    """A ``robot_description`` that cannot be drawn; says why."""


@dataclass(frozen=True)
class Visual:
    """One shape: its mesh in metres, colour (red, green, blue; 0 to 255), and its pose relative to
    joint number ``joint`` of the model (0 is the base): position ``[3]``, quaternion w x y z.
    """

    name: str
    joint: int
    mesh: trimesh.Trimesh
    colour: tuple[int, int, int]
    position: np.ndarray
    wxyz: np.ndarray


class RobotModel:
    """The visuals of a URDF, and where its joints and links are for given joint positions.

    ``packages`` are the folders that hold the packages of ``package://`` mesh names. Meshes that
    are not found are left out and named in ``missing``. Raises :class:`RobotModelError`.
    """

    def __init__(self, urdf: str, packages: Sequence[Path] = (), prefix: str = '') -> None:
        self.missing: list[str] = []
        folders = [str(folder) for folder in packages]
        try:
            description.check(urdf)
            text = self._without_missing_meshes(urdf, packages)
            self._model = pin.buildModelFromXML(text)
            shapes = pin.buildGeomFromUrdfString(
                self._model, text, pin.GeometryType.VISUAL, package_dirs=folders
            )
            self.visuals = [_visual(shape) for shape in shapes.geometryObjects]
        except RobotModelError:
            raise
        except (ElementTree.ParseError, ValueError, RuntimeError) as error:
            raise RobotModelError(f'robot_description: {error}') from error
        except Exception as error:  # readers of five formats of meshes, and what each may meet
            raise RobotModelError(f'robot_description: {reason(error)}') from error
        self._data = self._model.createData()
        self._prefix = prefix
        self._q = pin.neutral(self._model)
        self.joints = range(self._model.njoints)

    def move(self, positions: Mapping[str, float]) -> bool:
        """Take joint positions, rad or m, by name. Returns whether any was one of the model's."""
        known = False
        for name, value in positions.items():
            number = self._joint(name)
            if number is None or not np.isfinite(value):
                continue
            joint = self._model.joints[number]
            if joint.nv != 1:
                continue
            known = True
            # A continuous joint is written as cosine and sine.
            self._q[joint.idx_q : joint.idx_q + joint.nq] = (
                (value,) if joint.nq == 1 else (np.cos(value), np.sin(value))
            )
        pin.framesForwardKinematics(self._model, self._data, self._q)
        return known

    def pose_of_joint(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Position ``[3]`` in metres and quaternion w x y z of a joint in the base frame."""
        return _pose(self._data.oMi[number])

    def frame(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Position ``[3]`` and rotation ``[3, 3]`` of a link in the base frame, ``None`` if there
        is none of that name.
        """
        if not self._model.existFrame(name):
            return None
        placement = self._data.oMf[self._model.getFrameId(name)]
        return placement.translation.copy(), placement.rotation.copy()

    def _joint(self, name: str) -> int | None:
        for wanted in (name, self._prefix + name):
            if self._model.existJointName(wanted):
                return self._model.getJointId(wanted)
        return None

    def _without_missing_meshes(self, urdf: str, packages: Sequence[Path]) -> str:
        """The same robot, without meshes that are not on this machine: Pinocchio refuses those."""
        root = ElementTree.fromstring(urdf)
        for link in root.iter('link'):
            for visual in link.findall('visual'):
                mesh = visual.find('geometry/mesh')
                name = '' if mesh is None else mesh.get('filename', '')
                if mesh is not None and not _mesh_exists(name, packages):
                    self.missing.append(name)
                    link.remove(visual)
        return ElementTree.tostring(root, encoding='unicode')


def _mesh_exists(name: str, packages: Sequence[Path]) -> bool:
    if not name.lower().endswith(MESH_TYPES):
        return False
    if name.startswith('package://'):
        inside = name.removeprefix('package://')
        return any((folder / inside).is_file() for folder in packages)
    return Path(name.removeprefix('file://')).is_file()


def _visual(shape: pin.GeometryObject) -> Visual:
    geometry, kind = shape.geometry, type(shape.geometry).__name__
    if kind == 'Box':
        mesh = trimesh.creation.box(2 * np.asarray(geometry.halfSide))
    elif kind == 'Cylinder':
        mesh = trimesh.creation.cylinder(geometry.radius, 2 * geometry.halfLength, SECTIONS)
    elif kind == 'Sphere':
        mesh = trimesh.creation.icosphere(2, geometry.radius)
    elif kind == 'Capsule':
        mesh = trimesh.creation.capsule(2 * geometry.halfLength, geometry.radius)
    elif shape.meshPath:
        mesh = trimesh.load(shape.meshPath, force='mesh')
        mesh.apply_scale(np.asarray(shape.meshScale).ravel())
    else:
        raise RobotModelError(f'robot_description: {shape.name} is a {kind}, which is not drawn')
    red, green, blue = (round(255 * float(c)) for c in shape.meshColor[:3])
    return Visual(shape.name, shape.parentJoint, mesh, (red, green, blue), *_pose(shape.placement))


def _pose(placement: pin.SE3) -> tuple[np.ndarray, np.ndarray]:
    x, y, z, w = pin.Quaternion(placement.rotation).coeffs()
    return placement.translation.copy(), np.array([w, x, y, z])
