"""OpenVLA-OFT's sequence, readout and head; every trap of the sequence has a test."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_models import RecordingPass, relative

from specprune_ros.models.build import build, empty
from specprune_ros.models.config import ConfigError, PolicyConfig
from specprune_ros.models.flops import dense_flops, query_flops
from specprune_ros.models.preprocess import Preprocessor
from specprune_ros.models.presets import BENCH_INSTRUCTION, PRESETS, default_tokenizer, preset
from specprune_ros.models.tokens import Prompt, PromptTokenizer
from specprune_ros.pruning.interface import RowGroup

TINY = preset('tiny')


@pytest.fixture(scope='module')
def model():
    return build(TINY, seed=3)


@pytest.fixture(scope='module')
def prompt():
    return PromptTokenizer(default_tokenizer()).encode('pick up the red cube')


@pytest.fixture(scope='module')
def pixels():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(2)]
    return Preprocessor(TINY)(images).tensor


def fake_prompt(count):
    return Prompt(ids=tuple(range(3, 3 + count)), instruction=(10, count - 5))


@pytest.mark.parametrize(
    ('cameras', 'proprio', 'chunk', 'dim', 'p', 'length', 'placeholders', 'read'),
    [
        (2, 8, 8, 7, 35, 605, (548, 604), (547, 603)),
        (2, 8, 8, 7, 20, 590, (533, 589), (532, 588)),
        (1, 0, 8, 7, 35, 348, (291, 347), (290, 346)),
        (3, 14, 25, 14, 35, 1155, (804, 1154), (803, 1153)),
    ],
)
def test_layout_arithmetic(cameras, proprio, chunk, dim, p, length, placeholders, read):
    """The four rows of the published cases (LIBERO twice, one image, ALOHA)."""
    config = replace(
        TINY,
        cameras=tuple(f'c{i}' for i in range(cameras)),
        proprio_dim=proprio,
        chunk=chunk,
        action_dim=dim,
        action=replace(TINY.action, dims=tuple(map(str, range(dim))), scale=(), gripper_dim=-1),
    )
    where = empty(config).layout(fake_prompt(p))
    assert where.length == length
    assert where.action == read
    # From the end: [-(A+2):-2], one before the zero rows.
    a = chunk * dim
    assert (length - (a + 2), length - 2) == read
    assert (placeholders[0] - 1, placeholders[1] - 1) == read
    v, r = 256 * cameras, int(proprio > 0)
    assert where.prompt == tuple(range(v + r + 1, v + r + p))
    # The instruction without the template's head of nine and tail of five.
    assert where.text == tuple(range(v + r + 10, v + r + p - 5))
    assert (where.vision_start, where.vision_stop) == (1, v + 1)


def test_rows_are_where_the_layout_says(model, prompt, pixels):
    proprio = torch.linspace(-1, 1, 8)
    embedded = model.embed(pixels, prompt, proprio)
    rows, where = embedded.hidden[0], embedded.layout
    table = model.decoder.embed_tokens.weight
    p, v = len(prompt.ids), 512
    assert torch.equal(rows[0], table[1])  # BOS
    assert torch.equal(rows[1 : 1 + v], embedded.vision)
    assert torch.equal(rows[v + 1], model.proprio(proprio[None])[0])
    assert torch.equal(rows[v + 2 : v + 1 + p], table[list(prompt.ids[1:])])
    assert torch.equal(rows[list(where.prompt)], embedded.text)
    words = [default_tokenizer().id_to_token(prompt.ids[i]) for i in range(*prompt.instruction)]
    assert words == ['pick', 'up', 'the', 'red', 'cube']
    assert torch.equal(rows[list(where.text)], table[list(prompt.ids[slice(*prompt.instruction)])])
    first = where.action[0] + 1
    assert not rows[first : first + 56].any()  # placeholders are exactly zero
    assert torch.equal(rows[-1], table[2]) and rows[-1].any()  # the stop row is not
    assert where.length == first + 57


def test_images_share_the_towers_and_keep_their_order(model, prompt, pixels):
    both = model.embed(pixels, prompt, torch.zeros(8)).vision
    swapped = model.embed(pixels.flip(0), prompt, torch.zeros(8)).vision
    assert relative(swapped[:256], both[256:]) < 1e-5
    assert relative(swapped[256:], both[:256]) < 1e-5
    assert relative(swapped[:256], both[:256]) > 1e-2


def test_head_reads_one_row_before_each_placeholder(model, prompt, pixels):
    """A head window off by one in either direction must show."""
    embedded = model.embed(pixels, prompt, torch.zeros(8))
    out = model.decoder(embedded.hidden, embedded.layout)
    actions = model.head(out, embedded.layout)
    expected = model.action_head(out.hidden[:, -58:-2])[0]
    assert torch.equal(actions, expected)
    for wrong in (out.hidden[:, -57:-1], out.hidden[:, -56:], out.hidden[:, -59:-3]):
        assert relative(model.action_head(wrong)[0], expected) > 1e-3
    read = model.decoder(embedded.hidden, embedded.layout, read=model.read(embedded.layout))
    assert relative(model.head(read, embedded.layout), actions) < 1e-5
    dropped = RecordingPass({1: list(range(0, 512, 3))})
    short = model.decoder(embedded.hidden, embedded.layout, prune=dropped)
    assert torch.equal(
        model.head(short, embedded.layout), model.action_head(short.hidden[:, -58:-2])[0]
    )


def test_head_is_step_major_with_relu_and_residuals(model):
    x = torch.randn(1, 56, 128)
    head = model.action_head
    steps = torch.stack([x[0, 7 * k : 7 * k + 7].reshape(-1) for k in range(8)])
    y = torch.relu(head.fc1(head.layer_norm1(steps)))
    for block in head.blocks:
        y = y + torch.relu(block.linear(block.norm(y)))
    assert relative(head(x)[0], head.fc2(head.layer_norm2(y))) < 1e-5
    assert head.layer_norm1.eps == 1e-5


def test_the_last_prompt_token_reaches_the_first_patch(model, prompt, pixels):
    embedded = model.embed(pixels, prompt, torch.zeros(8))
    other = embedded.hidden.clone()
    other[0, embedded.layout.prompt[-1]] += 1
    first, second = (
        model.decoder(h, embedded.layout).hidden[0, 1] for h in (embedded.hidden, other)
    )
    assert not torch.equal(first, second)


def test_film_is_conditioned_on_all_words_and_the_stop_token(prompt, pixels):
    config = replace(TINY, film=True)
    model = build(config, seed=1)
    for name, parameter in model.named_parameters():
        if '.film.' in name:
            torch.nn.init.normal_(parameter, std=0.05)
    seen = []
    model.vision.towers[0].blocks[0].film.register_forward_hook(
        lambda _m, inputs, _o: seen.append(inputs[1])
    )
    model.embed(pixels, prompt, torch.zeros(8))
    words = model.decoder.embed_tokens.weight[[*prompt.ids, 2]]
    assert relative(seen[0], words.mean(0).expand(2, -1)) < 1e-5


def test_a_batch_equals_single_queries(model, pixels):
    tokenizer = PromptTokenizer(default_tokenizer())
    prompts = [tokenizer.encode(f'pick up the {colour} cube') for colour in ('red', 'blue')]
    proprio = torch.randn(2, 8)
    ids = torch.tensor([p.ids for p in prompts])
    hidden, _ = model.embed_rows(torch.stack((pixels, pixels.flip(0))), ids, proprio)
    where = model.layout(prompts[0])
    out = model.decoder(hidden, where, read=where.action)
    batch = model.head(out, where)
    for i, views in enumerate((pixels, pixels.flip(0))):
        single = model.embed(views, prompts[i], proprio[i])
        single_out = model.decoder(single.hidden, where, read=where.action)
        assert relative(batch[i], model.head(single_out, where)) < 1e-4


@pytest.mark.parametrize('code', [False, True])
def test_gradients_reach_every_parameter(pixels, prompt, code):
    model = build(replace(TINY, position_code=code), seed=0)
    with torch.inference_mode():  # tables kept by a query must not spoil training
        embedded = model.embed(pixels, prompt, torch.zeros(8))
        model.decoder(embedded.hidden, embedded.layout)
    model.requires_grad_(True)
    embedded = model.embed(pixels, prompt, torch.zeros(8))
    out = model.decoder(embedded.hidden, embedded.layout, read=model.read(embedded.layout))
    model.head(out, embedded.layout).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'pixels': 1}, '1 images given, the policy takes 2: third_person, wrist'),
        ({'proprio': None}, r'proprio must be \[1, 8\], is None'),
        ({'proprio': torch.zeros(7)}, r'proprio must be \[1, 8\], is \[1, 7\]'),
    ],
)
def test_inputs_that_do_not_fit_are_refused(model, prompt, pixels, change, message):
    count = change.get('pixels', 2)
    with pytest.raises(ValueError, match=message):
        model.embed(pixels[:count], prompt, change.get('proprio', torch.zeros(8)))


def test_building_twice_gives_the_same_weights():
    one, two, other = build(TINY, seed=5), build(TINY, seed=5), build(TINY, seed=6)
    for (name, a), b, c in zip(
        one.named_parameters(), two.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert torch.isfinite(a).all(), name
        if a.ndim > 1 and 'film' not in name:
            assert not torch.equal(a, c), name


def test_position_code_tells_patches_apart(prompt):
    model = build(replace(TINY, position_code=True), seed=0)
    grey = torch.zeros(2, 6, 224, 224)
    vision = model.embed(grey, prompt, torch.zeros(8)).vision[:256]
    distance = torch.cdist(vision, vision) + torch.eye(256) * 9
    assert distance.min() > 0.05


@pytest.mark.parametrize('name', PRESETS)
def test_presets_have_the_published_sizes(name):
    config = preset(name)
    assert PolicyConfig.from_dict(config.to_dict()) == config
    model = empty(config)
    # Index less lm_head, the last blocks, norms and pooling; plus head and proprio projector.
    if name == 'openvla-oft-7b':
        total = sum(p.numel() for p in model.parameters())
        dino_block = 12 * 1024**2 + 13 * 1024 + 2 * 1024
        siglip_block = 4 * 1152**2 + 2 * 1152 * 4304 + 9 * 1152 + 4304
        pool = 1152 + 4 * 1152**2 + 4 * 1152 + 2 * 1152 + 2 * 1152 * 4304 + 4304 + 1152
        unused = 32064 * 4096 + dino_block + siglip_block + 2 * 1024 + 2 * 1152 + pool
        assert total == 7_541_237_184 - unused + 151_117_831 + 16_818_176
    assert all(p.device.type == 'meta' for p in model.parameters())


def test_tiny_and_medium_have_the_paper_layout():
    tokenizer = PromptTokenizer(default_tokenizer())
    prompt = tokenizer.encode(BENCH_INSTRUCTION)
    assert prompt.unknown == ()
    for name in ('tiny', 'oft-medium'):
        where = empty(preset(name)).layout(prompt)
        assert (where.length, where.vision_tokens, where.grid) == (605, 512, (16, 16))
    assert preset('tiny').decoder.depth == 8
    assert preset('oft-medium').decoder.depth >= 16


def test_unknown_preset_lists_the_names():
    with pytest.raises(ValueError, match='no model preset .huge.; there are tiny'):
        preset('huge')


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'family': 'pi9'}, 'family: is "pi9"; it should be .openvla-oft., .db-oft., .cogact'),
        ({'chunk': 0}, 'chunk: is 0; it should be greater than or equal to 1'),
        ({'chunk': 'eight'}, 'chunk: is "eight"; it should be a valid integer'),
        ({'cameras': ['a', 'a']}, 'different names'),
        ({'cameras': []}, r'cameras: is \[\]; .* at least 1 item'),
        ({'speed': 3}, 'speed: is unknown; known here are action, action_dim'),
        ({'action_dim': 6}, 'action.dims names 7 columns, action_dim is 6'),
        ({'control_hz': -1.0}, 'control_hz: is -1.0; it should be greater than 0'),
        ({'stop_id': 512}, 'stop_id: 512 must be below decoder.vocab 512'),
        ({'towers': []}, r'towers: is \[\]; .* at least 1 item'),
        ({'decoder': {'width': 64}}, 'decoder.depth: is missing; decoder.heads: is missing'),
        ({'decoder': 7}, 'decoder: is 7; it should be an object'),
    ],
)
def test_bad_configurations_name_the_field(change, message):
    with pytest.raises(ConfigError, match=message):
        PolicyConfig.from_dict({**TINY.to_dict(), **change})


def test_causal_oft_is_refused():
    with pytest.raises(ConfigError, match='decoder.causal must be false'):
        replace(TINY, decoder=replace(TINY.decoder, causal=True))


def test_operations_of_the_7b_model():
    """8.03 TFLOP of the decoder at 605 rows, 0.77 of the towers (desk arithmetic of the notes)."""
    config = preset('openvla-oft-7b')
    where = empty(config).layout(fake_prompt(35))
    dense = dense_flops(config, where, read=False)
    assert dense.flops == 2 * dense.macs
    assert 2 * dense.decoder / 1e12 == pytest.approx(8.03, abs=0.02)
    assert 2 * dense.vision / 1e12 == pytest.approx(0.77, abs=0.04)
    assert 2 * dense.projector / 1e12 == pytest.approx(0.07, abs=0.01)


def test_operations_are_counted_from_what_ran(model, prompt, pixels):
    embedded = model.embed(pixels, prompt, torch.zeros(8))
    where = embedded.layout
    dense = model.decoder(embedded.hidden, where, read=where.action)
    assert query_flops(TINY, dense) == dense_flops(TINY, where)
    prune = RecordingPass({2: list(range(100))}, observed_layers={2: (RowGroup.TEXT,)})
    pruned = model.decoder(embedded.hidden, where, prune=prune, read=where.action)
    counted = query_flops(TINY, pruned)
    d, f, rows = 128, 256, where.length

    def layer(n, m=None):
        m = n if m is None else m
        return n * d * 2 * d + m * d * 2 * d + m * 3 * d * f + 2 * m * n * d

    left = rows - 412
    assert counted.decoder == 2 * layer(rows) + 5 * layer(left) + layer(left, 56)
    assert counted.observing == 5 * rows * d
    assert counted.vision == dense_flops(TINY, where).vision


@pytest.mark.slow
def test_building_a_model_imports_no_compiler():
    """It takes a second, at every start of a node."""
    code = (
        'import sys; from specprune_ros.models.load import random_policy_model as made; '
        "made('tiny'); sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
