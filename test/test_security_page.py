"""docs/explanation/security.md names a test for every threat, and only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'explanation' / 'security.md').read_text()


def rows(title):
    """Cells of the table under a heading."""
    section = PAGE.split(f'## {title}\n')[1].split('\n## ')[0]
    lines = [line for line in section.splitlines() if line.startswith('|')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]


def test_every_threat_names_a_test_that_exists():
    sources = [path.read_text() for path in (ROOT / 'test').rglob('*.py')]
    known = {name for text in sources for name in re.findall(r'def (test_\w+)', text)}
    found = rows('Threats')
    assert len(found) > 20
    for threat, answer, shown in found:
        names = re.findall(r'`(test_\w+)`', shown)
        assert set(names) <= known, f'{threat}: {sorted(set(names) - known)}'
        for path in re.findall(r'`(test/[\w/.]+)`', shown):
            assert (ROOT / path).exists(), path
        assert shown or answer.startswith('**nothing**'), threat


def test_every_limit_names_a_constant_and_a_file_that_exist():
    for limit, _, place in rows('Largest inputs'):
        paths = re.findall(r'`([\w/]+\.py)`', place)
        assert paths, limit
        text = ''.join((ROOT / 'specprune_ros' / path).read_text() for path in paths)
        for constant in re.findall(r'`([A-Z][A-Z_]+)`', place):
            assert re.search(rf'^{constant}\b', text, re.M), f'{limit}: {constant}'


def test_the_page_gives_the_limits_in_force():
    from specprune_ros.robot import description

    text = next(row[1] for row in rows('Largest inputs') if row[0] == '`robot_description`')
    for value in (description.MAX_LINKS, description.MAX_MOVABLE, description.MAX_DEPTH):
        assert re.search(rf'\b{value}\b', text), value
