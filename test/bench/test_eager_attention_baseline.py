"""The plain loop that benchmarks compare with: the same answers, and honest attention maps."""

import pytest
import torch
from toy_models import layout, relative

from specprune_ros.bench.eager_attention_baseline import stock_pass
from specprune_ros.models.config import DecoderConfig
from specprune_ros.models.decoder import Decoder
from specprune_ros.pruning.interface import RowGroup

SHAPES = {'full': (False, 4, False), 'causal': (True, 4, False), 'grouped': (True, 2, True)}


@pytest.fixture(params=SHAPES)
def case(request):
    causal, kv_heads, bias = SHAPES[request.param]
    config = DecoderConfig(
        width=64, depth=4, heads=4, kv_heads=kv_heads, mlp=96, vocab=50, causal=causal,
        qkv_bias=bias,
    )  # fmt: skip
    torch.manual_seed(0)
    decoder = Decoder(config).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.15)
    where = layout(causal=causal)
    return decoder, where, torch.randn(1, where.length, 64)


def test_it_answers_like_the_decoder(case):
    decoder, where, hidden = case
    output, _ = stock_pass(decoder, hidden, where)
    assert relative(output.hidden, decoder(hidden, where).hidden) < 1e-5
    first, stop = where.action
    read = decoder(hidden, where, read=where.action)
    assert relative(output.rows(first, stop, where), read.rows(first, stop, where)) < 1e-5


def test_it_hands_out_the_whole_softmax_of_every_layer(case):
    decoder, where, hidden = case
    _, maps = stock_pass(decoder, hidden, where)
    assert len(maps) == decoder.config.depth
    for attention in maps:
        assert attention.shape == (1, decoder.config.heads, where.length, where.length)
        assert torch.allclose(attention.sum(-1), torch.ones(()), atol=1e-5)
        assert (attention.triu(1) == 0).all() == where.causal
    # The side product of the pruned engine is a corner of the same map.
    side = decoder.probe(hidden, where, 1, RowGroup.TEXT)
    rows = list(where.rows(RowGroup.TEXT))
    corner = maps[0][0].mean(0)[rows, where.vision_start : where.vision_stop]
    assert torch.allclose(side, corner, atol=1e-6)


def test_it_counts_every_row(case):
    decoder, where, hidden = case
    output, _ = stock_pass(decoder, hidden, where)
    assert output.layer_rows == (where.length,) * decoder.config.depth
