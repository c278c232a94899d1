#!/usr/bin/env python3
"""Whether the pins of constraints.txt have wheels for every supported Python, without installing.

    python scripts/check_versions.py

Puts the resolver uv into a temporary environment and resolves all requirements against the package
index for Python 3.11 to 3.14 on Linux. Prints a line for each; exit status 1 where one fails.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ('3.11', '3.12', '3.13', '3.14')
# ROS has wheels for x86-64 only: elsewhere it comes from a ROS host.
FILES = {
    'x86_64-manylinux_2_36': ('build', 'ros', 'run', 'sim', 'view', 'test', 'docs'),
    'aarch64-manylinux_2_36': ('run', 'sim', 'view', 'test', 'docs'),
}
SOURCE_ONLY = 'empy'  # pure Python, no wheel on the index


def resolve(uv: Path, version: str, platform: str) -> tuple[int, str]:
    """Packages resolved, and the error where that failed."""
    done = subprocess.run(
        [
            uv, 'pip', 'compile', '--quiet', '--no-header', '--no-annotate',
            '--only-binary', ':all:', '--no-binary', SOURCE_ONLY,
            '--python-version', version, '--python-platform', platform,
            '--constraint', ROOT / 'constraints.txt',
            *(ROOT / 'requirements' / f'{name}.txt' for name in FILES[platform]),
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    return len(done.stdout.splitlines()), done.stderr.strip() if done.returncode else ''


def main() -> int:
    """Check every version and platform. Returns the exit status."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        pip = [Path(folder) / 'bin' / 'python', '-m', 'pip', 'install', '-q', 'uv']
        subprocess.run(pip, check=True)
        for platform in FILES:
            for version in VERSIONS:
                count, error = resolve(Path(folder) / 'bin' / 'uv', version, platform)
                print(f'Python {version}, {platform}: {error or f"{count} packages"}', flush=True)
                failed += bool(error)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
