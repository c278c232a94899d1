"""What a robot description may be, checked before any library sees it.

URDF libraries recurse from link to link and size their tables by the cube of the movable joints,
so a small document can overflow the stack or fill the machine. Here everything is counted without
recursion; then the library reads it once in a limited child process (``description_trial``).
"""

from __future__ import annotations

import hashlib
from xml.parsers import expat

MAX_URDF = 2_000_000  # characters; a detailed humanoid has under half of that
MAX_LINKS = 1000  # a humanoid with two hands has under 150
MAX_MOVABLE = 100  # joints; Pinocchio's tables grow with the cube: 100 take about 60 MB
MAX_DEPTH = 100  # joints from the root to a link
MAX_NESTING = 32  # XML elements within each other
MAX_ELEMENTS = 100_000
MAX_ATTRIBUTE = 10_000  # characters


class UrdfError(ValueError):
    """A robot description that cannot be used, with the cause."""


def digest(text: str) -> str:
    """SHA-256 of a description, hexadecimal: a profile's ``robot_description_sha256``."""
    return hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()


def check_size(text: str) -> None:
    """Raise ``UrdfError`` for an empty or too long description."""
    if not text.strip():
        raise UrdfError('robot_description is empty; a URDF document is needed')
    if len(text) > MAX_URDF:
        raise UrdfError(f'robot_description has {len(text)} characters; at most {MAX_URDF}')


def check(text: str) -> None:
    """Raise ``UrdfError`` unless size, links, joints and depth are those of a robot. Takes time in
    proportion to the text, and no recursion.
    """
    check_size(text)
    counted = _Counter()
    counted.read(text)
    _check_tree(counted.parents, counted.links)


class _Counter:
    """Reads links and joints with expat, which keeps its own stack on the heap."""

    def __init__(self) -> None:
        self.links: set[str] = set()
        self.parents: dict[str, str] = {}  # link: its parent
        self._elements = self._movable = 0
        self._path: list[str] = []
        self._ends: dict[str, str] = {}

    def read(self, text: str) -> None:
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._doctype
        try:
            parser.Parse(text, True)
        except (expat.ExpatError, UnicodeEncodeError) as error:
            raise UrdfError(f'robot_description does not parse: {error}') from error

    def _doctype(self, *_: object) -> None:
        raise UrdfError('robot_description holds a document type; URDF has none')

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        self._path.append(tag)
        if self._elements > MAX_ELEMENTS:
            raise UrdfError(f'robot_description has more than {MAX_ELEMENTS} elements')
        if len(self._path) > MAX_NESTING:
            raise UrdfError(f'robot_description nests more than {MAX_NESTING} elements')
        if any(len(value) > MAX_ATTRIBUTE for value in attributes.values()):
            raise UrdfError(
                f'robot_description has an attribute of more than {MAX_ATTRIBUTE} characters'
            )
        # Only what stands directly under <robot> is a link or joint; transmissions name them too.
        if len(self._path) == 2 and tag == 'link':
            self._link(attributes.get('name', ''))
        elif len(self._path) == 2 and tag == 'joint':
            self._ends = {}
            if attributes.get('type') != 'fixed':
                self._movable += 1
                if self._movable > MAX_MOVABLE:
                    raise UrdfError(
                        f'robot_description has more than {MAX_MOVABLE} movable joints'
                    )
        elif len(self._path) == 3 and self._path[1] == 'joint' and tag in ('parent', 'child'):
            self._ends[tag] = attributes.get('link', '')

    def _end(self, tag: str) -> None:
        self._path.pop()
        if len(self._path) == 1 and tag == 'joint' and len(self._ends) == 2:
            child = self._ends['child']
            if child in self.parents:
                raise UrdfError(f"robot_description: link '{child[:60]}' has two parents")
            self.parents[child] = self._ends['parent']

    def _link(self, name: str) -> None:
        if name in self.links:
            raise UrdfError(f"robot_description has two links named '{name[:60]}'")
        self.links.add(name)
        if len(self.links) > MAX_LINKS:
            raise UrdfError(f'robot_description has more than {MAX_LINKS} links')


def _check_tree(parents: dict[str, str], links: set[str]) -> None:
    if len(parents) > MAX_LINKS:
        raise UrdfError(f'robot_description has more than {MAX_LINKS} joints')
    depths: dict[str, int] = {}
    for link in links | set(parents):
        way = []
        at = link
        while at in parents and at not in depths:
            way.append(at)
            if len(way) > MAX_DEPTH:
                # So deep, or in a circle: both are refused.
                raise UrdfError(
                    f'robot_description: more than {MAX_DEPTH} joints lie between the root and '
                    f"link '{link[:60]}'"
                )
            at = parents[at]
        depth = depths.get(at, 0)
        for name in reversed(way):
            depth += 1
            depths[name] = depth
        if depth > MAX_DEPTH:
            raise UrdfError(
                f'robot_description: more than {MAX_DEPTH} joints lie between the root and link '
                f"'{link[:60]}'"
            )
