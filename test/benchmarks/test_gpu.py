"""What the GPU's benchmark makes of kernels and rows, on made-up ones."""

import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture(scope='module')
def gpu():
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location('gpu_benchmark', FOLDER / 'gpu.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_kernels_are_distinguished_and_gaps_counted(gpu, monkeypatch):
    monkeypatch.setattr(gpu, 'PROFILED', 2)
    query = [
        ('nvjet_hsh_256x128_64x4', 0, 60),
        ('flash_fwd_kernel', 60, 80),
        ('vectorized_elementwise_kernel', 90, 100),  # ten microseconds after the one before
        ('Memcpy DtoH', 100, 110),
    ]
    later = [(name, start + 5000, end + 5000) for name, start, end in query]
    found = gpu.shares(query + later)
    assert found['ms'] == {'gemm': 0.06, 'attention': 0.02, 'other': 0.01, 'copy': 0.01}
    assert found['busy'] == pytest.approx(100 / 110, abs=1e-4)
    assert found['slowest'][0] == {'kernel': 'nvjet_hsh_256x128_64x4', 'ms': 0.06}
    assert gpu.shares([])['busy'] is None


def results(**changes):
    row = {'ms_p50': 12.0, 'ms_p99': 13.0, 'speedup': 1.0, 'speedup_stock': 5.0, 'trouble': ''}
    pruned = {**row, 'ms_p50': 6.0, 'ms_p99': 6.3, 'speedup': 2.0, 'speedup_stock': 10.0}
    return {
        'rows': [
            {'pruner': 'dense', 'mode': 'graph', **row},
            {'pruner': 'specprune', 'mode': 'graph', **pruned, **changes},
        ],
        'profile': [
            {
                'mode': 'dense', 'trouble': '', 'tflop': 9.0, 'ceiling_tflops': 1000.0,
                'ms': {'gemm': 12.0},
            }
        ],
        'memory': {'trouble': '', 'weights_gib': 14.0, 'reserved_gib': 15.0},
        'fp8': [{'pruner': 'specprune', 'mode': 'graph', **pruned, **changes}],
        'node': [
            {'mode': 'dense', 'ms_p50': 11.0, 'ms_p99': 11.5},
            {'mode': 'coarse', 'ms_p50': 5.0, 'ms_p99': 6.0},
        ],
    }  # fmt: skip


def test_the_figures_of_a_model(gpu):
    made = gpu.figures(results())
    assert set(made) == set(gpu.FIGURES)
    assert made['over_dense'] == 2.0
    assert made['gemm_share'] == pytest.approx(0.75)
    assert made['memory_gib'] == 1.0
    assert (made['node_over_dense'], made['tail']) == (2.2, 1.2)
    assert (made['fp8_ms'], made['fp8_over_dense']) == (6.0, 2.0)


def test_a_graph_that_was_answered_eagerly_is_no_figure(gpu):
    made = gpu.figures(results(trouble='no CUDA graph: out of memory'))
    assert not {'over_dense', 'fp8_ms'} & set(made) and made['gemm_share']
    nothing = {'rows': [], 'profile': [], 'memory': None, 'fp8': [], 'node': []}
    assert gpu.figures(nothing) == {}
