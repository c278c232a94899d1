"""One of each fault on the wire; ``test/fault_injection/serving_faults.py`` injects many."""

import pytest

from test.fault_injection.serving_faults import run

pytestmark = [
    pytest.mark.usefixtures('one_thread'),
    pytest.mark.real_time,
    pytest.mark.timeout(240),
]


@pytest.mark.slow
def test_no_fault_of_one_client_touches_another():
    result = run(1, seed=7)
    assert [row for row in result['rows'] if row['failures']] == []
    assert result['survived'] == result['injected'] == 13
    assert result['exit_status'] == 0
