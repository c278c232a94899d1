"""The README begins with the two commands, and its numbers are the recorded ones."""

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_it_begins_with_the_two_commands():
    lines = (ROOT / 'README.md').read_text().splitlines()
    assert lines[0] == '# specprune_ros'
    assert lines[2] == '```'
    assert lines[3].startswith('make demo')
    assert lines[4].startswith('make test')


def test_its_numbers_are_those_of_the_recorded_results():
    # Made anew by: python benchmarks/summary.py
    summary = runpy.run_path(str(ROOT / 'benchmarks' / 'summary.py'))
    assert summary['headline']() in (ROOT / 'README.md').read_text()
    page = ROOT / 'docs' / 'reference' / 'measurements.md'
    assert summary['markdown']() in page.read_text()


def test_the_benchmark_page_tells_what_was_recorded():
    summary = runpy.run_path(str(ROOT / 'benchmarks' / 'summary.py'))
    page = (ROOT / 'docs' / 'how-to' / 'bench.md').read_text()
    assert summary['cpu_options']() in page
    assert summary['gpu_rows']() in page


def test_every_recorded_result_names_machine_date_and_command():
    for path in (ROOT / 'benchmarks' / 'results').glob('*.json'):
        result = json.loads(path.read_text())
        assert isinstance(result, dict), path.name
        assert 'date' in result and 'command' in result, path.name
        assert 'machine' in result or 'hardware' in result, path.name
