"""The documents: links lead somewhere, and the Python they show runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import specprune_ros

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md')))


def anchors(page):
    """Anchors of a page's headings, as GitHub and MkDocs make them."""
    heads = re.findall(r'^#+ (.+)$', page.read_text(), re.M)
    return {re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', page.read_text()):
        if '://' in target:
            continue
        path, _, anchor = target.partition('#')
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor and file.suffix == '.md':
            assert anchor in anchors(file), target


def test_the_site_is_built_without_warnings_and_holds_every_public_name(tmp_path):
    pytest.importorskip('mkdocs', reason='requirements/docs.txt')
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '-d', str(tmp_path / 'site')],
        capture_output=True,
        text=True,
        timeout=115,
        cwd=ROOT,
        env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'},
    )
    assert done.returncode == 0 and 'WARNING' not in done.stderr, done.stderr
    text = (tmp_path / 'site' / 'reference' / 'api' / 'index.html').read_text()
    absent = [
        name for name in specprune_ros.__all__ if not re.search(rf'id="[\w.]+\.{name}"', text)
    ]
    assert not absent, f'not in docs/reference/api.md: {absent}'
    assert ':class:`' not in text


def test_the_python_example_runs_and_prints_a_pruned_query():
    page = (ROOT / 'docs' / 'reference' / 'python_api.md').read_text()
    code = re.search(r'^```python\n(.*?)^```', page, re.S | re.M).group(1)
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, timeout=100, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    dense, pruned = done.stdout.splitlines()
    assert dense.startswith('dense') and dense.endswith('100%')
    assert pruned.startswith('coarse') and not pruned.endswith('100%')
