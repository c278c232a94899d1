"""The page on what pruning costs says what was recorded."""

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'explanation' / 'fidelity.md').read_text()


def test_its_tables_are_the_recorded_ones():
    # Made anew by: python benchmarks/fidelity.py --plot docs/curves.png
    made = runpy.run_path(str(ROOT / 'benchmarks' / 'fidelity.py'))
    for name in made['TABLES']:
        assert made['markdown'](name) in PAGE, name
    assert made['curves']() in PAGE
    assert made['foretold']() in PAGE
    assert made['percent'](made['floor']()) in PAGE


def test_the_shares_of_all_queries_together_are_the_recorded_ones():
    made = runpy.run_path(str(ROOT / 'benchmarks' / 'fidelity.py'))
    prose = ' '.join(PAGE.split())
    for label, words in (
        ('specprune', "SpecPrune {} of the operations, {} of the decoder's"),
        ('specprune, slack', 'with slack refresh {} and {} on the critical path'),
    ):
        shares = (made['pooled'](label, name) for name in ('flops_ratio', 'decoder_flops'))
        assert words.format(*map(made['percent'], shares)) in prose, label


def test_the_records_are_of_the_shipped_weights():
    from specprune_ros.sim.evaluation.trials import weights_hash
    from specprune_ros.sim.training.export import SHIPPED

    made = runpy.run_path(str(ROOT / 'benchmarks' / 'fidelity.py'))
    curves = [f'curves_{family}' for family in made['CURVES']]
    records = [f'fidelity_{name}.json' for name in (*made['TABLES'], *curves)]
    for name in (*records, 'prior_recall.json'):
        record = json.loads((made['RESULTS'] / name).read_text())
        assert record['weights'] == weights_hash(SHIPPED), name
