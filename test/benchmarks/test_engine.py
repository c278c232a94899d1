"""The comparison with transformers is one of equals: same weights, same rows, same answers."""

import sys
from pathlib import Path

import pytest
import torch

from specprune_ros.models.load import random_policy_model
from specprune_ros.models.presets import BENCH_INSTRUCTION
from specprune_ros.policy.build import build_policy
from specprune_ros.policy.synthetic_observations import observations

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))


def test_their_loop_answers_like_ours():
    import engine

    torch.set_num_threads(1)
    decoder = random_policy_model('tiny')
    layout = decoder.model.layout(decoder.tokenizer.encode(BENCH_INSTRUCTION))
    decoder = decoder.model.decoder
    hidden = torch.randn(1, layout.length, decoder.config.width)
    with torch.inference_mode():
        theirs = engine.llama(decoder)
        got = theirs(inputs_embeds=hidden, use_cache=False).last_hidden_state
        wanted = decoder(hidden, layout).hidden
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert theirs.layers[0].mlp.up_proj.weight.untyped_storage().data_ptr() == (
        decoder.layers[0].gate_up.weight.untyped_storage().data_ptr()
    )


@pytest.mark.slow
def test_queries_are_counted_from_before_the_first_to_the_last():
    import growth

    policy = build_policy(preset='tiny', device='cpu', threads=1)
    looks = growth.run(policy, observations(policy, BENCH_INSTRUCTION, seed=0), 2, 12)
    assert [look['queries'] for look in looks] == [0, *range(2, 13)]
    assert all(look['gc_objects'] > 1000 and look['resident_mib'] > 10 for look in looks)


def test_growth_is_named():
    import growth

    flat = {'queries': 1, 'gc_objects': 1000, 'resident_mib': 100.0, 'python_kib': 50.0}
    assert growth.judge([flat, flat, flat]) == []
    more = {**flat, 'gc_objects': 11_000, 'resident_mib': 110.0, 'python_kib': 900.0}
    assert len(growth.judge([flat, flat, more])) == 3
