#!/usr/bin/env python3
"""Whether every dependency of package.xml is a rosdep key, offline against a copy of the index.

    python scripts/check_rosdep.py PATH

PATH is a checkout of the public index (ros/rosdistro): names are read from rosdep/base.yaml,
rosdep/python.yaml and the packages released for each supported distribution. Prints where each key
was found and records it in test/data/rosdep_keys.json, which the tests compare with package.xml.
Exit status 1 where a key is missing for a distribution.
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
DISTROS = ('jazzy', 'kilted', 'lyrical')
RECORD = ROOT / 'test' / 'data' / 'rosdep_keys.json'


def declared() -> list[str]:
    """Every key that package.xml depends on."""
    tree = ElementTree.parse(ROOT / 'package.xml').getroot()
    return sorted({e.text for e in tree if e.tag.endswith('depend') and e.text})


def names(index: Path) -> dict[str, set[str]]:
    """Keys by where they are: the system's packages, and those released for each distribution."""
    system: set[str] = set()
    for file in ('base', 'python'):
        system |= yaml.safe_load((index / 'rosdep' / f'{file}.yaml').read_text()).keys()
    out = {'rosdep': system}
    for distro in DISTROS:
        tree = yaml.safe_load((index / distro / 'distribution.yaml').read_text())
        out[distro] = {
            package
            for name, entry in tree['repositories'].items()
            if entry.get('release', {}).get('version')
            for package in entry['release'].get('packages', [name])
        }
    return out


def main(arguments: list[str]) -> int:
    """Check and record. Returns the exit status."""
    if len(arguments) != 1 or not (Path(arguments[0]) / 'rosdep' / 'base.yaml').is_file():
        print(__doc__)
        return 2
    index = names(Path(arguments[0]))
    found = {key: [place for place in index if key in index[place]] for key in declared()}
    for key, places in found.items():
        print(f'{key}: {", ".join(places) or "nowhere"}')
    RECORD.write_text(json.dumps(found, indent=1) + '\n')
    missing = [k for k, places in found.items() if 'rosdep' not in places and places != [*DISTROS]]
    if missing:
        print(f'not for every distribution: {", ".join(missing)}')
    return 1 if missing else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
