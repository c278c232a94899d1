"""The trained policy in the package: it is the file its recipe names, and it does its tasks."""

import pytest

from specprune_ros.policy.build import build_policy
from specprune_ros.pruning.params import PruningParams
from specprune_ros.sim.arm.world import World
from specprune_ros.sim.evaluation.evaluate import REPORT_SEED, run_row
from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
from specprune_ros.sim.training.export import SHIPPED, check_shipped
from specprune_ros.sim.training.recipe import Recipe, policy_config

pytestmark = pytest.mark.skipif(
    not (SHIPPED / 'config.json').exists(), reason='no trained weights in this checkout'
)


@pytest.fixture(scope='module')
def runner():
    return PolicyRunner(
        build_policy(str(SHIPPED), device='cpu', threads=1, params=PruningParams(pruner='dense'))
    )


@pytest.fixture(scope='module')
def world():
    made = World()
    yield made
    made.close()


def test_weights_match_their_recipe(runner):
    record = check_shipped()
    recipe = Recipe.from_dict(record['recipe'])
    last = recipe.stages[-1]
    assert record['steps_done'] == last.ground_steps + last.steps
    assert runner.policy.config == policy_config(recipe)
    size = sum(path.stat().st_size for path in SHIPPED.iterdir())
    assert size <= 16 * 2**20


# With the five below 20 episodes; docs/explanation/fidelity.md has hundreds per row, with
# intervals.
@pytest.mark.parametrize(
    ('family', 'episodes', 'least'), [('move', 6, 6), ('lift', 5, 4), ('put', 4, 2)]
)
@pytest.mark.timeout(600)
def test_it_does_what_is_instructed(world, runner, family, episodes, least):
    row = run_row(world, runner, family, 'instructed', range(REPORT_SEED, REPORT_SEED + episodes))
    assert row.successes >= least, row


@pytest.mark.timeout(600)
def test_it_listens(world, runner):
    """Another cube named: the one requested at first is left alone."""
    row = run_row(world, runner, 'move', 'wrong colour', range(REPORT_SEED, REPORT_SEED + 5))
    assert row.successes <= 1, row
