"""A golden pack is files in its own folder, and nothing else."""

import io
import tarfile

import pytest

from specprune_ros.policy.parity import unpack


def archive(path, *names):
    with tarfile.open(path, 'w:xz') as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 2
            tar.addfile(member, io.BytesIO(b'ok'))
        link = tarfile.TarInfo('pack/link')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(link)
    return path


def test_files_are_written_and_links_are_not(tmp_path):
    made = unpack(archive(tmp_path / 'pack.tar.xz', 'pack/a.json', 'pack/b/c.json'), tmp_path)
    assert sorted(str(f.relative_to(made)) for f in made.rglob('*.json')) == ['a.json', 'b/c.json']
    assert not (made / 'link').is_symlink()


@pytest.mark.parametrize('name', ['../outside', '/tmp/outside', 'pack/../../outside'])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path, name):
    place = tmp_path / 'in'
    place.mkdir()
    with pytest.raises(ValueError, match='outside the pack'):
        unpack(archive(tmp_path / 'pack.tar.xz', name), place)
    assert not (tmp_path / 'outside').exists()
