"""The golden packs of flow policies as folders, unpacked once a process."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from specprune_ros.policy import parity


@functools.cache
def flow_packs() -> Path:
    place = Path(tempfile.mkdtemp(prefix='golden-packs-'))
    atexit.register(shutil.rmtree, place, True)
    for archive in parity.FOLDER.glob('pi*.tar.xz'):
        parity.unpack(archive, place)
    return place
