"""The decoder against transformers, and what may and may not change when rows leave."""

import pytest
import torch
from toy_models import EVERY, RecordingPass, keep_all, layout, map_llama, relative
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

from specprune_ros.models.config import DecoderConfig
from specprune_ros.models.decoder import Decoder, KVCache
from specprune_ros.pruning.interface import PruneSchedule, RowGroup, Selection

BOUND = 1e-5  # issue's bound on the largest relative error, float32
SHAPES = {
    'llama-full': ('llama', False, 4),
    'llama-causal': ('llama', True, 4),
    'qwen2-causal': ('qwen2', True, 2),
    'qwen2-full': ('qwen2', False, 1),
}


def pair(kind, causal, kv_heads, depth=4):
    """Our decoder and transformers' model with the same random weights."""
    torch.manual_seed(0)
    sizes = {
        'hidden_size': 64,
        'intermediate_size': 96,
        'num_hidden_layers': depth,
        'num_attention_heads': 4,
        'num_key_value_heads': kv_heads,
        'vocab_size': 50,
        'rms_norm_eps': 1e-6,
        'attn_implementation': 'eager',
    }
    if kind == 'llama':
        theirs = LlamaModel(LlamaConfig(**sizes))
    else:
        theirs = Qwen2Model(Qwen2Config(**sizes, rope_parameters={'rope_theta': 1e6}))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    ours = Decoder(pair_config(causal, kind, kv_heads, depth)).eval().requires_grad_(False)
    map_llama(ours, theirs.eval())
    return ours, theirs.requires_grad_(False)


def pair_config(causal, kind='llama', kv_heads=2, depth=4):
    return DecoderConfig(
        width=64,
        depth=depth,
        heads=4,
        kv_heads=kv_heads,
        mlp=96,
        vocab=50,
        rope_theta=1e4 if kind == 'llama' else 1e6,
        causal=causal,
        qkv_bias=kind == 'qwen2',
    )


class Reference:
    """transformers' layers driven by hand, with any mask, positions and attention weights."""

    def __init__(self, model, causal):
        self.model, self.causal = model, causal
        self.states, self.weights = [], {}

    def mask(self, rows, columns=None, gone=()):
        columns = rows if columns is None else columns
        allowed = torch.ones(len(rows), len(columns), dtype=torch.bool)
        if self.causal:
            allowed &= columns[None] <= rows[:, None]
        for column in gone:
            allowed[:, column] = False
        return torch.zeros(allowed.shape).masked_fill(~allowed, float('-inf'))[None, None]

    def layer(self, number, hidden, positions, mask=None):
        tables = self.model.rotary_emb(hidden, position_ids=positions[None])
        layer = self.model.layers[number - 1]
        mask = self.mask(torch.arange(len(positions))) if mask is None else mask
        x = layer.input_layernorm(hidden)
        _, weights = layer.self_attn(x, position_embeddings=tables, attention_mask=mask)
        self.weights[number] = weights[0].mean(0)
        hidden = layer(hidden, attention_mask=mask, position_embeddings=tables)
        self.states.append(hidden)
        return hidden


@pytest.mark.parametrize('shape', SHAPES)
def test_every_layer_equals_transformers(shape):
    kind, causal, kv_heads = SHAPES[shape]
    ours, theirs = pair(kind, causal, kv_heads)
    where = layout(causal=causal)
    hidden = torch.randn(1, where.length, 64)
    spy = keep_all(where)
    out = ours(hidden, where, prune=spy)
    reference, x = Reference(theirs, causal), hidden
    for number in range(1, 5):
        x = reference.layer(number, x, torch.arange(where.length))
        if number < 4:
            seen = x[0, where.vision_start : where.vision_stop]
            assert relative(spy.rows[number], seen) < BOUND
    assert relative(out.hidden, theirs.norm(x)) < BOUND


@pytest.mark.parametrize('shape', ['llama-causal', 'qwen2-causal'])
def test_causal_equals_the_whole_model_of_transformers(shape):
    ours, theirs = pair(*SHAPES[shape])
    where = layout(causal=True)
    hidden = torch.randn(1, where.length, 64)
    expected = theirs(inputs_embeds=hidden).last_hidden_state
    assert relative(ours(hidden, where).hidden, expected) < BOUND


def test_attention_runs_in_both_directions():
    """The last row must reach the first patch (a causal decoder would not let it)."""
    ours, _ = pair('llama', False, 4)
    where = layout()
    hidden = torch.randn(1, where.length, 64)
    other = hidden.clone()
    other[0, -1] += 1
    first = ours(hidden, where).hidden[0, where.vision_start]
    assert not torch.equal(first, ours(other, where).hidden[0, where.vision_start])
    causal, _ = pair('llama', True, 4)
    where = layout(causal=True)
    first = causal(hidden, where).hidden[0, :-1]
    assert torch.equal(first, causal(other, where).hidden[0, :-1])


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('read', [False, True])
def test_keep_all_is_dense_bit_for_bit(causal, read):
    ours, _ = pair('llama', causal, 2)
    where = layout(causal=causal)
    hidden = torch.randn(1, where.length, 64)
    window = where.action if read else None
    dense = ours(hidden, where, read=window)
    observe = {n: EVERY for n in range(1, 5)}
    for prune in (
        keep_all(where),
        keep_all(where, observed_layers=observe),
        keep_all(where, exact=True),
    ):
        out = ours(hidden, where, prune=prune, read=window)
        assert torch.equal(out.hidden, dense.hidden)
        assert torch.equal(out.positions, dense.positions)
        assert out.layer_tokens == dense.layer_tokens == (18,) * 4


@pytest.mark.parametrize('shape', SHAPES)
def test_dropped_rows_equal_masked_columns(shape):
    """Dropping a row after a layer is masking its column from the next layer on."""
    kind, causal, kv_heads = SHAPES[shape]
    ours, theirs = pair(kind, causal, kv_heads)
    where = layout(causal=causal)
    hidden = torch.randn(1, where.length, 64)
    # Of 18 rows keep 9 before layer 1, of those 5 after layer 2.
    prune = RecordingPass(
        {0: [0, 2, 3, 5, 8, 9, 13, 16, 17], 2: [0, 3, 4, 6, 8]},
        observed_layers={1: EVERY, 4: EVERY},
    )
    out = ours(hidden, where, prune=prune)
    after = {0: [0, 2, 3, 5, 8, 9, 13, 16, 17], 2: [0, 5, 8, 13, 17]}
    everything = torch.arange(where.length)
    reference, x, gone = Reference(theirs, causal), hidden, []
    for number in range(1, 5):
        if number - 1 in after:
            left = after[number - 1]
            gone = [where.vision_start + i for i in range(18) if i not in left]
        x = reference.layer(number, x, everything, reference.mask(everything, gone=gone))
    rows = [i for i in range(where.length) if i not in gone]
    assert relative(out.hidden, theirs.norm(x)[:, rows]) < BOUND
    assert out.positions.tolist() == rows
    assert out.vision_ids.tolist() == [0, 5, 8, 13, 17]
    assert out.layer_tokens == (9, 9, 5, 5)
    assert out.layer_rows == (where.length - 9,) * 2 + (where.length - 13,) * 2
    columns = [where.vision_start + i for i in after[2]]
    for group in (RowGroup.TEXT, RowGroup.PROMPT, RowGroup.ACTION, RowGroup.LAST):
        expected = reference.weights[4][list(where.rows(group))][:, columns]
        assert relative(prune.attention[4, group], expected) < BOUND
    assert (
        relative(prune.attention[4, RowGroup.ALL], reference.weights[4][rows][:, columns]) < BOUND
    )


def test_positions_are_kept_not_renumbered():
    """Against a reference that renumbers, the result must differ; against kept ones, agree."""
    ours, theirs = pair('llama', False, 4)
    where = layout()
    hidden = torch.randn(1, where.length, 64)
    out = ours(hidden, where, prune=RecordingPass({0: [4, 11]}))
    rows = torch.tensor([0, 5, 12, *range(19, where.length)])
    kept, renumbered = hidden[:, rows], hidden[:, rows]
    reference = Reference(theirs, False)
    for number in range(1, 5):
        kept = reference.layer(number, kept, rows)
        renumbered = reference.layer(number, renumbered, torch.arange(len(rows)))
    assert relative(out.hidden, theirs.norm(kept)) < BOUND
    assert relative(out.hidden, theirs.norm(renumbered)) > 100 * BOUND


@pytest.mark.parametrize('causal', [False, True])
def test_merged_tokens_follow_the_kept_ones(causal):
    ours, theirs = pair('llama', causal, 2)
    where = layout(causal=causal)
    hidden = torch.randn(1, where.length, 64)
    weights = torch.zeros(2, 18)
    weights[0, [1, 2]] = 0.5
    weights[1, [7, 9, 10]] = torch.tensor([0.2, 0.3, 0.5])
    prune = RecordingPass(
        {1: [0, 3, 12]},
        observed_layers={3: (RowGroup.LAST,)},
        merge={1: (weights, torch.tensor([2, 9]))},
    )
    out = ours(hidden, where, prune=prune)
    reference = Reference(theirs, causal)
    everything = torch.arange(where.length)
    x = reference.layer(1, hidden, everything)
    vision = x[0, 1:19]
    rows = torch.tensor([0, 1, 4, 13, 3, 10, *range(19, where.length)])
    x = torch.cat((x[0, [0, 1, 4, 13]], weights @ vision, x[0, 19:]))[None]
    index = torch.arange(len(rows))
    for number in (2, 3, 4):
        x = reference.layer(number, x, rows, reference.mask(index))
    assert relative(out.hidden, theirs.norm(x)) < BOUND
    assert out.positions.tolist() == rows.tolist()
    assert out.vision_ids.tolist() == [0, 3, 12, -1, -1]
    assert out.layer_tokens == (18, 5, 5, 5)
    expected = reference.weights[3][-1:, 1:6]
    assert relative(prune.attention[3, RowGroup.LAST], expected) < BOUND


def test_skipped_layers_are_left_out():
    ours, theirs = pair('llama', False, 4)
    where = layout()
    hidden = torch.randn(1, where.length, 64)
    # A prune at the boundary of a skipped layer still happens.
    out = ours(hidden, where, prune=RecordingPass({2: [0, 17]}, skip={2, 4}))
    reference = Reference(theirs, False)
    x = reference.layer(1, hidden, torch.arange(where.length))
    rows = torch.tensor([0, 1, 18, *range(19, where.length)])
    x = reference.layer(3, x[:, rows], rows)
    assert relative(out.hidden, theirs.norm(x)) < BOUND
    assert out.layer_tokens == (18, 0, 2, 0)
    assert out.layer_rows == (where.length, 0, where.length - 16, 0)
    window = where.action
    again = ours(hidden, where, prune=RecordingPass({2: [0, 17]}, skip={2, 4}), read=window)
    assert relative(again.hidden, out.rows(*window, where)) < BOUND
    assert again.layer_rows == (where.length, 0, window[1] - window[0], 0)


@pytest.mark.parametrize('shape', SHAPES)
def test_reuse_takes_keys_and_values_of_the_previous_query(shape):
    """VLA-Cache: rows not kept are not computed; their old keys and values are attended to."""
    kind, causal, kv_heads = SHAPES[shape]
    ours, theirs = pair(kind, causal, kv_heads)
    where = layout(causal=causal)
    before, now = torch.randn(2, 1, where.length, 64)
    cache = KVCache(4)
    ours(before, where, cache=cache)
    # The old columns a left-out row shows at layer n are those of the previous query there.
    everything = torch.arange(where.length)
    old, states = Reference(theirs, causal), [before]
    for number in range(1, 5):
        states.append(old.layer(number, states[-1], everything))
    keep = [1, 2, 6, 11, 17]
    prune = RecordingPass({2: keep}, observed_layers={3: EVERY, 4: (RowGroup.ACTION,)}, reuse=True)
    out = ours(now, where, prune=prune, cache=cache)
    rows = torch.tensor([0, *(1 + i for i in keep), *range(19, where.length)])
    new, x = Reference(theirs, causal), now
    for number in (1, 2):
        x = new.layer(number, x, everything)
    for number in (3, 4):
        # The layer on old rows overwritten by the fresh ones sees exactly the cached columns.
        x = states[number - 1].clone().index_copy(1, rows, x[:, rows])
        x = new.layer(number, x, everything)
    assert relative(out.hidden, theirs.norm(x)[:, rows]) < BOUND
    assert out.positions.tolist() == rows.tolist()
    assert out.layer_tokens == (18,) * 4
    assert out.layer_rows == (where.length,) * 2 + (len(rows),) * 2
    assert [work.keys for work in out.work] == [where.length] * 4
    columns = [1 + i for i in keep]
    assert relative(prune.attention[3, RowGroup.ALL], new.weights[3][rows][:, columns]) < BOUND
    text = list(where.text)
    assert relative(prune.attention[3, RowGroup.TEXT], new.weights[3][text][:, columns]) < BOUND
    # Keep-all reuse is the dense pass, and so is a repeated query whatever is reused.
    dense = ours(now, where)
    assert torch.equal(ours(now, where, keep_all(where, reuse=True), cache).hidden, dense.hidden)
    again = ours(now, where, RecordingPass({1: keep}, reuse=True), cache)
    assert relative(again.hidden, dense.hidden[:, rows]) < BOUND
    window = where.action
    last = ours(now, where, RecordingPass({1: keep}, reuse=True), cache, read=window)
    assert relative(last.hidden, dense.rows(*window, where)) < BOUND


@pytest.mark.parametrize('shape', SHAPES)
def test_reading_a_range_computes_only_that(shape):
    kind, causal, kv_heads = SHAPES[shape]
    ours, _ = pair(kind, causal, kv_heads)
    where = layout(causal=causal)
    hidden = torch.randn(1, where.length, 64)
    spies = [RecordingPass({2: [3, 4, 8]}, observed_layers={4: EVERY}) for _ in range(2)]
    full = ours(hidden, where, prune=spies[0])
    ranges = (where.action, (where.length - 1, where.length), (where.vision_stop, where.length))
    for window in ranges:
        out = ours(hidden, where, prune=spies[1], read=window)
        assert relative(out.hidden, full.rows(*window, where)) < BOUND
        assert out.positions.tolist() == list(range(*window))
        assert out.work[-1].queries == window[1] - window[0]
        assert out.work[-1].inputs == out.work[-1].keys == where.length - 15
        for group in EVERY:
            expected = spies[0].attention[4, group]
            assert relative(spies[1].attention[4, group], expected) < BOUND
    last = ours(hidden, where, read=(where.length - 1, where.length))
    with pytest.raises(ValueError, match='were not computed'):
        last.rows(*where.action, where)


def test_probe_is_the_attention_on_the_embeddings():
    ours, theirs = pair('qwen2', True, 2)
    where = layout(causal=True)
    hidden = torch.randn(1, where.length, 64)
    reference = Reference(theirs, True)
    reference.layer(3, hidden, torch.arange(where.length))
    for group in EVERY:
        expected = reference.weights[3][list(where.rows(group))][:, 1:19]
        assert relative(ours.probe(hidden, where, 3, group), expected) < BOUND
    with pytest.raises(ValueError, match='layer must be 1..4'):
        ours.probe(hidden, where, 5, RowGroup.TEXT)


def test_scattered_rows_and_large_maps(monkeypatch):
    """Rows that are not in one piece, and side products cut into groups of heads."""
    ours, theirs = pair('llama', False, 2)
    where = layout()
    where = type(where)(**{**where.__dict__, 'text': where.text[::2]})
    hidden = torch.randn(1, where.length, 64)
    monkeypatch.setattr('specprune_ros.models.decoder_layer._MAP_ELEMENTS', 1)
    prune = RecordingPass({1: [2, 7]}, observed_layers={2: (RowGroup.TEXT, RowGroup.ALL)})
    ours(hidden, where, prune=prune)
    reference = Reference(theirs, False)
    x = reference.layer(1, hidden, torch.arange(where.length))
    rows = torch.tensor([0, 3, 8, *range(19, where.length)])
    reference.layer(2, x[:, rows], rows)
    text = [p - 16 for p in where.text]
    assert relative(prune.attention[2, RowGroup.TEXT], reference.weights[2][text][:, 1:3]) < BOUND
    assert relative(prune.attention[2, RowGroup.ALL], reference.weights[2][:, 1:3]) < BOUND


def test_empty_row_groups_give_empty_attention():
    ours, _ = pair('llama', False, 4)
    where = layout()
    where = type(where)(**{**where.__dict__, 'text': ()})
    prune = RecordingPass({}, observed_layers={2: (RowGroup.TEXT,)})
    ours(torch.randn(1, where.length, 64), where, prune=prune)
    assert prune.attention[2, RowGroup.TEXT].shape == (0, 18)


def test_a_batch_trains_through_the_decoder():
    ours, theirs = pair('llama', False, 4)
    where = layout()
    ours.requires_grad_(True)
    hidden = torch.randn(3, where.length, 64)
    out = ours(hidden, where, read=where.action)
    out.hidden.square().mean().backward()
    assert all(p.grad is not None for n, p in ours.named_parameters() if 'embed' not in n)
    single = ours(hidden[1:2], where, read=where.action)
    assert relative(out.hidden[1:2], single.hidden) < BOUND


def test_bfloat16_stays_near_float32():
    """Stated bound: 5 % of the largest value after four layers."""
    ours, _ = pair('llama', False, 2)
    where = layout()
    hidden = torch.randn(1, where.length, 64)
    exact = ours(hidden, where).hidden
    rough = ours.to(torch.bfloat16)(hidden.bfloat16(), where).hidden
    assert rough.dtype == torch.bfloat16
    assert relative(rough.float(), exact) < 0.05


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'prune': RecordingPass({5: [0]})}, 'schedule.prune names'),
        (
            {'prune': RecordingPass({}, observed_layers={0: (RowGroup.LAST,)})},
            'schedule.observed_layers names',
        ),
        (
            {'prune': RecordingPass({}, observed_layers={2: (RowGroup.LAST,)}, skip={2})},
            'skipped layers',
        ),
        ({'prune': RecordingPass({}, skip={1, 2, 3, 4})}, 'skips all'),
        ({'prune': RecordingPass({1: [0]}, reuse=True)}, 'filled by a previous'),
        (
            {'prune': RecordingPass({1: [0]}, reuse=True), 'cache': KVCache(4)},
            'filled by a previous',
        ),
        ({'prune': RecordingPass({4: [0]}), 'read': (26, 28)}, 'after the last layer'),
        ({'read': (3, 28)}, 'behind the images'),
        ({'layout': layout(depth=5)}, 'layout says depth 5'),
        ({'layout': layout(tail=8)}, 'hidden must be'),
    ],
)
def test_contradictions_are_refused(options, message):
    ours, _ = pair('llama', False, 4)
    hidden = torch.randn(1, 32, 64)
    where = options.pop('layout', layout())
    with pytest.raises(ValueError, match=message):
        ours(hidden, where, **options)


def test_a_selection_of_the_wrong_size_is_refused():
    ours, _ = pair('llama', False, 4)
    prune = RecordingPass({1: [0, 1]})
    prune.keep = {1: [0]}
    with pytest.raises(ValueError, match='announced 2 vision tokens, the selection has 1'):
        ours(torch.randn(1, 32, 64), layout(), prune=prune)


class OnMeta:
    """A static plan whose tensors have no data: reading any value would fail."""

    def __init__(self, schedule, merged=0):
        self.schedule, self.merged, self.shapes = schedule, merged, []

    def observe(self, layer, group, attention):
        self.shapes.append((layer, group, tuple(attention.shape)))

    def select(self, boundary, rows):
        left = self.schedule.prune[boundary]
        keep = torch.empty(left - self.merged, dtype=torch.int64, device='meta')
        if not self.merged:
            return Selection(keep)
        position = torch.empty(self.merged, dtype=torch.int64, device='meta')
        return Selection(keep, torch.empty(self.merged, len(rows), device='meta'), position)


@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize('way', ['drop', 'merge', 'reuse', 'skip'])
def test_a_static_pass_never_reads_a_value_on_the_host(causal, way):
    """On the meta device there is no data, so a host synchronisation cannot go unnoticed."""
    with torch.device('meta'):
        ours = Decoder(pair_config(causal))
        hidden = torch.empty(1, 32, 64)
    where, cache = layout(causal=causal), KVCache(4)
    ours(hidden, where, cache=cache)
    schedule = PruneSchedule(
        observed_layers=dict.fromkeys((1, 4), EVERY),
        prune={1: 10, 2: 6},
        skip=frozenset({3}) if way == 'skip' else frozenset(),
        reuse=way == 'reuse',
    )
    plan = OnMeta(schedule, merged=2 if way == 'merge' else 0)
    out = ours(hidden, where, plan, cache if way == 'reuse' else None, read=where.action)
    assert out.hidden.shape == (1, 6, 64)
    assert (4, RowGroup.TEXT, (3, 6)) in plan.shapes
    with pytest.raises(RuntimeError):  # that the check can fail
        out.hidden.sum().item()


def test_rows_gone_for_good_leave_no_cache_behind():
    ours, _ = pair('llama', False, 4)
    where, cache = layout(), KVCache(4)
    hidden = torch.randn(1, where.length, 64)
    ours(hidden, where, cache=cache)
    assert cache.filled(where.length)
    ours(hidden, where, prune=RecordingPass({1: [0]}), cache=cache)
    assert not cache.filled(where.length)
