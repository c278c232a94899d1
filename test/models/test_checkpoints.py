"""Loading the released layouts: exact results, known traps, files that must be refused."""

import json
import math
import os
import resource
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic
import torch
from safetensors.torch import load_file, save_file
from toy_models import RecordingPass, relative

from specprune_ros.models.build import build, empty
from specprune_ros.models.checkpoint import tensor_names
from specprune_ros.models.checkpoint.files import CheckpointError, TensorDict, load_pt
from specprune_ros.models.load import (
    inspect_checkpoint,
    load_policy_model,
    random_policy_model,
    save_policy_model,
)
from specprune_ros.models.preprocess import center_crop
from specprune_ros.models.presets import (
    COGACT_7B,
    DB_COGACT_7B,
    DB_OFT_7B,
    DB_OFT_DIT_7B,
    OPENVLA_OFT_7B,
    preset,
)
from specprune_ros.models.statistics import Statistics
from specprune_ros.models.tokens import word_tokenizer
from specprune_ros.pruning.interface import RowGroup

ROOT = Path(__file__).parents[2]
OFT = ROOT.parent / 'shared' / 'data' / 'openvla_oft_libero_10'
real = pytest.mark.skipif(not OFT.is_dir(), reason='the OFT small files are not beside this tree')
BOUND = 1e-5  # whole policies in float32: towers, projector, decoder and head in a row


def load(folder, **options):
    return load_policy_model(folder, progress=False, **options)


def images(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(count)]


def run(loaded, frames, proprio=None, instruction='pick up the red cube', prune=None, seed=None):
    """Normalised actions, and the pass's output."""
    model = loaded.model
    with torch.inference_mode():
        pixels = loaded.preprocessor(frames)
        embedded = model.embed(pixels.tensor, loaded.tokenizer.encode(instruction), proprio)
        where = embedded.layout
        out = model.decoder(embedded.hidden, where, prune=prune, read=model.read(where))
        return model.head(out, where, model.noise(seed)).clone(), out, where


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """One checkpoint of each family."""
    base = tmp_path_factory.mktemp('checkpoints')
    return {
        'oft': synthetic.write_oft(base / 'oft'),
        'film': synthetic.write_oft(base / 'film', film=True, dim=14, proprio=14),
        'db': synthetic.write_db_oft(base / 'db'),
        'cogact': synthetic.write_cogact(base / 'cogact'),
    }


# --- exact results ---

OFT_TRAPS = [
    'unrounded means',
    'tower order',
    'non-zero placeholders',
    'eps 1e-5',
    'causal',
    'window late',
    'window early',
]


@pytest.fixture(scope='module')
def oft_result(folders):
    loaded = load(folders['oft'].folder)
    frames, proprio = images(2), torch.linspace(-1, 1, 8)
    actions, _, _ = run(loaded, frames, proprio)
    seen = [center_crop(torch.from_numpy(f)).numpy() for f in frames]
    ids = list(loaded.tokenizer.encode('pick up the red cube').ids)

    def expected(trap=None):
        return synthetic.oft_actions(folders['oft'], ids, seen, proprio, 8, 7, trap)

    return actions, expected


def test_oft_gives_the_actions_of_its_weights(oft_result):
    actions, expected = oft_result
    assert actions.shape == (8, 7)
    assert relative(actions, expected()) < BOUND


@pytest.mark.parametrize('trap', OFT_TRAPS)
def test_oft_does_not_fall_into(oft_result, trap):
    actions, expected = oft_result
    assert relative(actions, expected(trap)) > 100 * BOUND


def test_film_backbone_is_merged_and_modulated(folders):
    """OFT+ on ALOHA: three images, 14 joints, chunk 25, unmerged LoRA in the file."""
    loaded = load(folders['film'].folder)
    config = loaded.config
    assert (config.film, config.chunk, config.norm, len(config.cameras)) == (
        True,
        25,
        'min_max',
        3,
    )
    assert config.action.kind == 'joint_position' and config.pre_resize == 256
    loaded = replace(
        loaded, preprocessor=type(loaded.preprocessor)(replace(config, pre_resize=0, jpeg=False))
    )
    frames, proprio = images(3), torch.linspace(-1, 1, 14)
    actions, _, where = run(loaded, frames, proprio)
    seen = [center_crop(torch.from_numpy(f)).numpy() for f in frames]
    ids = list(loaded.tokenizer.encode('pick up the red cube').ids)
    expected = synthetic.oft_actions(folders['film'], ids, seen, proprio, 25, 14)
    assert relative(actions, expected) < BOUND
    assert where.action[1] - where.action[0] == 350
    unmerged = dict(folders['film'].tensors)
    stored = torch.load(folders['film'].folder / 'vision_backbone--150000_checkpoint.pt')
    for name, value in stored.items():
        if name.endswith('base_layer.weight'):
            plain = name.removeprefix('module.vision_backbone.').replace('.base_layer', '')
            unmerged[f'film.{plain}'] = value
    wrong = replace(folders['film'], tensors=unmerged)
    expected = synthetic.oft_actions(wrong, ids, seen, proprio, 25, 14)
    assert relative(actions, expected) > 100 * BOUND


@pytest.mark.parametrize('proprio', [0, 5])
def test_db_oft_gives_the_actions_of_its_weights(tmp_path, proprio):
    written = synthetic.write_db_oft(tmp_path / 'db', proprio=proprio)
    loaded = load(written.folder)
    state = torch.linspace(-1, 1, proprio) if proprio else None
    actions, out, where = run(loaded, images(1), state)
    prompt = loaded.tokenizer.encode('pick up the red cube')
    before, after = list(prompt.ids[: prompt.vision_at]), list(prompt.ids[prompt.vision_at :])

    def expected(trap=None):
        return synthetic.db_oft_actions(written, before, after, images(1), state, 4, trap)

    assert relative(actions, expected()) < BOUND
    for trap in ('shifted readout', 'bidirectional', 'last block'):
        assert relative(actions, expected(trap)) > 100 * BOUND
    # Queries are the last rows; the images stand after the system prompt.
    assert where.action == (where.length - 28, where.length)
    assert where.vision_start == len(before) and where.causal
    assert out.work[-1].queries == 28


def test_cogact_gives_the_actions_of_its_weights(folders):
    loaded = load(folders['cogact'].folder)
    assert loaded.config.decoder.rms_norm_eps == 1e-5
    frames = images(1)
    actions, out, where = run(loaded, frames, seed=4)
    start = torch.randn(16, 7, generator=torch.Generator().manual_seed(4))
    seen = frames[0]  # no crop: the path of the published numbers
    ids = list(loaded.tokenizer.encode('pick up the red cube').ids)
    assert ids[-1] == 2

    def expected(trap=None):
        return synthetic.cogact_actions(folders['cogact'], ids, seen, start, trap)

    assert relative(actions, expected()) < BOUND
    for trap in ('eps 1e-6', 'bidirectional', 'one row early', 'no guidance'):
        assert relative(actions, expected(trap)) > 100 * BOUND
    assert out.work[-1].queries == 1  # only the cognition row is computed in the last layer
    again, _, _ = run(loaded, frames, seed=4)
    assert torch.equal(actions, again)
    half = load(folders['cogact'].folder, dtype=torch.bfloat16)
    kinds = {n: p.dtype for n, p in half.model.named_parameters()}
    assert kinds['action_head.x_embedder.weight'] == torch.float32
    assert kinds['decoder.norm.weight'] == torch.bfloat16


@pytest.mark.parametrize('family', ['oft', 'film', 'db', 'cogact'])
def test_pruning_works_on_every_family(folders, family):
    loaded = load(folders[family].folder)
    config = loaded.config
    frames = images(len(config.cameras))
    proprio = torch.zeros(config.proprio_dim) if config.proprio_dim else None
    dense, _, where = run(loaded, frames, proprio, seed=1)
    everything = list(range(where.vision_tokens))
    observe = {2: (RowGroup.TEXT, RowGroup.ACTION)}
    same, _, _ = run(
        loaded, frames, proprio, prune=RecordingPass({1: everything}, observe), seed=1
    )
    assert torch.equal(dense, same)
    spy = RecordingPass({1: everything[::3]}, observe)
    pruned, out, _ = run(loaded, frames, proprio, prune=spy, seed=1)
    assert pruned.shape == dense.shape and not torch.equal(pruned, dense)
    assert out.layer_tokens[1:] == (len(everything[::3]),) * 2
    assert spy.attention[2, RowGroup.TEXT].shape[0] == 5


def test_bfloat16_stays_near_float32(folders):
    """Stated bound for whole tiny policies: 6 % of the largest action."""
    exact, _, _ = run(load(folders['oft'].folder), images(2), torch.zeros(8))
    rough, _, _ = run(load(folders['oft'].folder, dtype=torch.bfloat16), images(2), torch.zeros(8))
    assert rough.dtype == torch.bfloat16
    assert relative(rough.float(), exact) < 0.06


def test_gripper_keeps_its_scale_and_sense(folders):
    """OFT's gripper leaves the head on 0 (closed) .. 1 (open), not rescaled, not flipped."""
    loaded = load(folders['oft'].folder)
    raw = np.zeros((8, 7))
    raw[:, 6] = np.linspace(0, 1, 8)
    out = loaded.statistics.unnormalise_actions(raw)
    assert np.array_equal(out[:, 6], raw[:, 6])
    assert loaded.config.action.gripper_sense == 'one_is_open'
    assert loaded.config.action.gripper_dim == 6
    cogact = load(folders['cogact'].folder)
    assert cogact.statistics.binarise == 6 and cogact.statistics.epsilon == 0
    raw[:, 6] = [-3, 0, 0.49, 0.5, 0.6, 1, 2, 9]
    out = cogact.statistics.unnormalise_actions(raw)
    assert out[:, 6].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    db = load(folders['db'].folder)
    out = db.statistics.unnormalise_actions(np.array([[3.0] * 6 + [-1.0], [0.0] * 7]))
    np.testing.assert_allclose(out, [[0.3] * 6 + [0.0], [0.1] * 6 + [0.5]], atol=1e-12)
    assert db.statistics.normalise_proprio(np.array([5.0])).tolist() == [5.0]  # served raw


# --- full size, without weights ---


def count(entries):
    return sum(math.prod(entry.shape) for entry in entries.values())


@real
def test_the_real_index_has_exactly_our_names():
    index = json.loads((OFT / 'model.safetensors.index.json').read_text())
    entries = tensor_names.oft_model(OPENVLA_OFT_7B)
    assert set(entries) == set(index['weight_map'])
    assert len(entries) == 982
    assert count(entries) == 7_541_237_184
    assert 2 * count(entries) == index['metadata']['total_size']


def test_full_sizes_fit_the_meta_model():
    """Every tensor has a place of its shape, and every parameter is filled exactly once."""
    film = replace(OPENVLA_OFT_7B, film=True)
    cases = {
        'oft': (
            OPENVLA_OFT_7B,
            tensor_names.oft_model(OPENVLA_OFT_7B)
            | {f'h.{n}': e for n, e in tensor_names.l1_head('model.', OPENVLA_OFT_7B).items()}
            | {f'p.{n}': e for n, e in tensor_names.proprio('', OPENVLA_OFT_7B).items()},
        ),
        'film': (
            film,
            tensor_names.oft_model(film)
            | {f'v.{n}': e for n, e in tensor_names.oft_film(film).items()}
            | {f'h.{n}': e for n, e in tensor_names.l1_head('model.', film).items()}
            | {f'p.{n}': e for n, e in tensor_names.proprio('', film).items()},
        ),
        'db': (DB_OFT_7B, tensor_names.dexbotic_model(DB_OFT_7B)),
        'dit': (DB_OFT_DIT_7B, tensor_names.dexbotic_model(DB_OFT_DIT_7B)),
        'db-cogact': (DB_COGACT_7B, tensor_names.dexbotic_model(DB_COGACT_7B)),
        'cogact': (COGACT_7B, tensor_names.cogact_model(COGACT_7B)),
    }
    assert count(tensor_names.l1_head('model.', OPENVLA_OFT_7B)) == 151_117_831
    assert count(tensor_names.proprio('', OPENVLA_OFT_7B)) == 16_818_176
    for name, (config, entries) in cases.items():
        parameters = dict(empty(config).named_parameters())
        covered = dict.fromkeys(parameters, 0)
        for entry in entries.values():
            for slot in entry.slots:
                part = slot.source(torch.empty(entry.shape, device='meta'))
                place = slot.view(parameters[slot.target])
                assert place.shape == part.shape, (name, slot.target)
                if not slot.add or not covered[slot.target]:
                    covered[slot.target] += place.numel()
        assert covered == {n: p.numel() for n, p in parameters.items()}, name


@real
def test_inspecting_the_real_small_files_names_every_absent_one():
    report = inspect_checkpoint(OFT)
    assert not report.ok
    assert {file.name: round(file.bytes / 1e9, 2) for file in report.absent} == {
        'model-00001-of-00004.safetensors': 4.93,
        'model-00002-of-00004.safetensors': 4.95,
        'model-00003-of-00004.safetensors': 4.95,
        'model-00004-of-00004.safetensors': 0.26,
        'action_head--<step>_checkpoint.pt': 0.30,
        'proprio_projector--<step>_checkpoint.pt': 0.07,
    }
    assert len(report.problems) == 6
    assert report.statistics_keys == ('libero_10_no_noops',)
    assert (report.config.chunk, report.config.action_dim, report.config.proprio_dim) == (8, 7, 8)
    assert report.config.towers[0].mean == (0.484375, 0.455078125, 0.40625)
    assert report.config.convention == 'libero/openvla-oft'
    assert replace(report.config, convention='', execute=0) == OPENVLA_OFT_7B


# --- what an inspection says ---


@pytest.mark.parametrize('family', ['oft', 'film', 'db', 'cogact'])
def test_inspection_of_a_whole_folder(folders, family):
    report = inspect_checkpoint(folders[family].folder)
    assert report.ok, report.problems
    assert (report.missing, report.unexpected, report.absent) == ([], [], [])
    assert sum(report.dropped.values()) > 0
    facts = {fact.name: fact for fact in report.facts}
    assert facts['chunk'].value == {'oft': 8, 'film': 25, 'db': 4, 'cogact': 16}[family]
    assert facts['action_dim'].value == (14 if family == 'film' else 7)
    expected = 'tensor shapes' if family != 'db' else 'config.json'
    assert expected in facts['action_dim'].source
    model = load(folders[family].folder).model
    assert report.parameters == sum(p.numel() for p in model.parameters())
    assert json.loads(json.dumps(report.to_dict()))['ok'] is True


def test_dropped_tensors_are_on_an_explicit_list(folders):
    report = inspect_checkpoint(folders['oft'].folder)
    assert dict(report.dropped) == {
        'last block: features are taken before it': 26,
        'final norm: features are taken before it': 4,
        'pooling head: not used': 13,
        'output words: actions do not use them': 1,
    }


def test_what_no_file_says_can_be_given(folders, tmp_path):
    folder = folders['oft'].folder
    given = inspect_checkpoint(folder, overrides={'chunk': 4, 'cameras': ('top', 'hand')})
    assert (given.config.chunk, given.config.cameras) == (4, ('top', 'hand'))
    assert {f.name: f.source for f in given.facts}['chunk'] == 'given'
    wrong = inspect_checkpoint(folder, overrides={'speed': 1})
    assert 'speed: is unknown' in wrong.problems[0]
    written = synthetic.write_oft(tmp_path / 'x')
    synthetic.write_json(written.folder, 'specprune.json', {'control_hz': 10.0, 'chunk': 2})
    assert inspect_checkpoint(written.folder).config.control_hz == 10.0


def test_bridge_is_distinguished_from_libero_by_its_dimensions(tmp_path):
    written = synthetic.write_oft(tmp_path / 'x', proprio=7)
    synthetic.write_json(
        written.folder, 'dataset_statistics.json', synthetic.statistics(7, 7, 'bridge_orig')
    )
    config = load(written.folder).config
    assert (config.chunk, config.cameras, config.proprio_dim) == (5, ('third_person',), 7)


# --- our own format ---


@pytest.mark.parametrize('dtype', [None, torch.float16])
def test_our_own_format_round_trips(tmp_path, dtype):
    config = replace(preset('tiny'), position_code=True, film=True, norm='min_max')
    model = build(config, seed=2)
    low, high = np.arange(7) * -0.1, np.arange(7) * 0.2 + 0.1
    scales = Statistics(low, high, np.arange(7) < 6, np.zeros(8), np.ones(8), key='sim_arm')
    tokenizer = word_tokenizer(['red blue'])
    folder = save_policy_model(
        tmp_path / 'sim', model, tokenizer, scales, dtype, {'recipe': 'abc'}
    )
    assert not list(folder.glob('.*'))
    loaded = load(folder)
    assert loaded.config == config
    assert json.loads((folder / 'config.json').read_text())['metadata'] == {'recipe': 'abc'}
    for (name, a), b in zip(model.named_parameters(), loaded.model.parameters(), strict=True):
        expected = a if dtype is None else a.to(dtype).float()
        assert torch.equal(b, expected), name
    assert loaded.tokenizer.encode('red stone').unknown == ('stone',)
    raw = np.random.default_rng(0).normal(size=(8, 7))
    assert np.array_equal(
        loaded.statistics.unnormalise_actions(raw), scales.unnormalise_actions(raw)
    )
    assert loaded.statistics.proprio_high.tolist() == [1.0] * 8


def test_any_family_can_be_saved_in_our_own_format(folders, tmp_path):
    for family in ('film', 'db', 'cogact'):
        first = load(folders[family].folder)
        folder = save_policy_model(
            tmp_path / family, first.model, first.tokenizer.tokenizer, first.statistics
        )
        again = load(folder)
        frames = images(len(first.config.cameras))
        proprio = torch.zeros(first.config.proprio_dim) if first.config.proprio_dim else None
        a, b = (run(m, frames, proprio, seed=3)[0] for m in (first, again))
        assert torch.equal(a, b)
        raw = np.random.default_rng(0).normal(size=(8, first.config.action_dim))
        assert np.array_equal(
            first.statistics.unnormalise_actions(raw), again.statistics.unnormalise_actions(raw)
        )


def test_random_models_say_so():
    loaded = random_policy_model('tiny', seed=1)
    assert 'random weights' in loaded.notes[0]
    actions, _, _ = run(loaded, images(2), torch.zeros(8))
    assert torch.isfinite(actions).all()


# --- files that must be refused ---


def shard(folder, number=1):
    return sorted(folder.glob('model-*.safetensors'))[number - 1]


def truncate(folder):
    path = shard(folder)
    path.write_bytes(path.read_bytes()[:-100])


def lose_shard(folder):
    shard(folder, 2).unlink()


def cut_to_nothing(folder):
    shard(folder).write_bytes(b'\x00' * 5)


def quantise(folder):
    tensors = load_file(shard(folder))
    name = next(n for n in tensors if n.endswith('qkv.weight'))
    save_file({**tensors, name: tensors[name].to(torch.int8)}, shard(folder))


def forget_index_entry(folder):
    path = folder / 'model.safetensors.index.json'
    index = json.loads(path.read_text())
    del index['weight_map']['projector.fc1.weight']
    path.write_text(json.dumps(index))


def lose_tensor(folder):
    for path in folder.glob('model-*.safetensors'):
        tensors = load_file(path)
        if tensors.pop('projector.fc1.weight', None) is not None:
            save_file(tensors, path)


def add_tensor(folder):
    forget = load_file(shard(folder))
    save_file({**forget, 'surprise.weight': torch.zeros(2)}, shard(folder))
    path = folder / 'model.safetensors.index.json'
    index = json.loads(path.read_text())
    index['weight_map']['surprise.weight'] = shard(folder).name
    path.write_text(json.dumps(index))


def wrong_shape(folder):
    tensors = load_file(shard(folder))
    name = next(n for n in tensors if n.endswith('norm1.weight'))
    save_file({**tensors, name: torch.zeros(5, dtype=torch.bfloat16)}, shard(folder))


def index_outside(folder):
    path = folder / 'model.safetensors.index.json'
    index = json.loads(path.read_text())
    index['weight_map']['projector.fc1.weight'] = '../elsewhere.safetensors'
    path.write_text(json.dumps(index))


def other_robot(folder):
    synthetic.write_json(folder, 'dataset_statistics.json', synthetic.statistics(14, 14, 'aloha'))


def two_robots(folder):
    both = synthetic.statistics(7, 8, 'a') | synthetic.statistics(7, 8, 'b')
    synthetic.write_json(folder, 'dataset_statistics.json', both)


def no_statistics(folder):
    (folder / 'dataset_statistics.json').unlink()


class Evil:
    def __reduce__(self):
        return os.system, ('touch pwned',)


def evil_pickle(folder):
    torch.save({'module.x': Evil()}, folder / 'action_head--150000_checkpoint.pt')


def object_pickle(folder):
    torch.save({'module.x': 'text'}, folder / 'action_head--150000_checkpoint.pt')


def cut_pickle(folder):
    path = folder / 'action_head--150000_checkpoint.pt'
    path.write_bytes(path.read_bytes()[:1000])


def two_heads(folder):
    path = folder / 'action_head--150000_checkpoint.pt'
    (folder / 'action_head--50000_checkpoint.pt').write_bytes(path.read_bytes())


def diffusion(folder):
    torch.save({}, folder / 'noisy_action_projector--1_checkpoint.pt')


def eps(folder):
    edit_config(folder, lambda c: c['text_config'].update(rms_norm_eps=1e-5))


def swapped_towers(folder):
    edit_config(folder, lambda c: c['timm_model_ids'].reverse())


def unknown_model(folder):
    edit_config(folder, lambda c: c.update(model_type='pi0'))


def broken_config(folder):
    (folder / 'config.json').write_text('{"model_type": ')


def no_tokenizer(folder):
    (folder / 'tokenizer.json').unlink()


def broken_tokenizer(folder):
    (folder / 'tokenizer.json').write_text('{}')


def edit_config(folder, change):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


REFUSED = [
    (truncate, r'model-00001.*has \d+ bytes, its header says \d+: truncated.*download it again'),
    (lose_shard, r'model-00002-of-00003.safetensors is absent'),
    (cut_to_nothing, r'model-00001.*not a whole safetensors file \(5 bytes\)'),
    (quantise, r"qkv.weight' is I8, weights must be floating point"),
    (forget_index_entry, r"holds 'projector.fc1.weight' \(1 such\), which .* does not place"),
    (lose_tensor, r"lacks 'projector.fc1.weight', which model.safetensors.index.json places"),
    (add_tensor, r'1 unexpected tensors: surprise.weight'),
    (wrong_shape, r"norm1.weight' has shape \[5\], the model needs \[32\]"),
    (index_outside, r'elsewhere.safetensors.*not a safetensors file in this folder'),
    (other_robot, r'action has 14 dimensions, the model 7: .* another robot'),
    (two_robots, r"holds 2 robots, give unnorm_key as one of \['a', 'b'\]"),
    (no_statistics, r'dataset_statistics.json is absent'),
    (evil_pickle, r'action_head--150000.*refused, it asks to run \S*system: only tensors'),
    (object_pickle, r"action_head--150000.*'x' is a str, not a tensor"),
    (cut_pickle, r'action_head--150000.*not a whole torch file'),
    (two_heads, r'2 files for action_head .*keep one'),
    (diffusion, r'noisy_action_projector: this is the diffusion variant'),
    (eps, r'rms_norm_eps is 1e-05, OpenVLA-OFT is fine-tuned and run with 1e-6'),
    (swapped_towers, r'timm_model_ids is .* in this order'),
    (unknown_model, r"model_type 'pi0' is not known"),
    (broken_config, r'config.json: not valid JSON'),
    (no_tokenizer, r'tokenizer.json is absent: download it'),
    (broken_tokenizer, r'tokenizer.json: not a tokenizer'),
]


@pytest.mark.parametrize(('harm', 'message'), REFUSED, ids=lambda x: getattr(x, '__name__', ''))
def test_a_harmed_checkpoint_is_refused_with_file_and_cure(tmp_path, monkeypatch, harm, message):
    monkeypatch.chdir(tmp_path)
    folder = synthetic.write_oft(tmp_path / 'x').folder
    assert inspect_checkpoint(folder).ok
    harm(folder)
    report = inspect_checkpoint(folder)
    assert not report.ok
    with pytest.raises(CheckpointError, match=f'(?s){message}'):
        load(folder)
    assert not (tmp_path / 'pwned').exists()


def test_nan_weights_are_refused_while_loading(tmp_path):
    for harm in (float('nan'), float('inf')):
        folder = synthetic.write_oft(tmp_path / 'x').folder
        tensors = load_file(shard(folder, 2))
        name = next(n for n, v in tensors.items() if v.ndim == 2 and 'pool' not in n)
        tensors[name][0, 0] = harm
        save_file(tensors, shard(folder, 2))
        with pytest.raises(CheckpointError, match=f"model-00002.*'{name}' holds NaN or infinite"):
            load(folder)


@pytest.mark.parametrize(
    'setting',
    [{'padding': {'strategy': {'Fixed': 30}, 'direction': 'Right', 'pad_to_multiple_of': None,
                  'pad_id': 0, 'pad_type_id': 0, 'pad_token': '<unk>'}},
     {'truncation': {'direction': 'Right', 'max_length': 4, 'strategy': 'LongestFirst',
                     'stride': 0}}],
    ids=['padding', 'truncation'],
)  # fmt: skip
def test_padding_and_truncation_left_in_a_tokenizer_do_not_change_a_prompt(
    folders, tmp_path, setting
):
    folder = shutil.copytree(folders['oft'].folder, tmp_path / 'x')
    want = load_policy_model(folder, progress=False).tokenizer.encode('pick up the red cube')
    path = folder / 'tokenizer.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    loaded = load_policy_model(folder, progress=False)
    assert loaded.tokenizer.encode('pick up the red cube') == want


def test_a_tokenizer_that_puts_no_begin_token_first_is_refused(folders, tmp_path):
    """Images would have come after the first word."""
    folder = shutil.copytree(folders['oft'].folder, tmp_path / 'x')
    path = folder / 'tokenizer.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), 'post_processor': None}))
    assert 'puts no begin token first' in inspect_checkpoint(folder).problems[0]


def test_a_vocabulary_of_the_right_size_and_other_ids_is_refused(tmp_path):
    folder = shutil.copytree(OFT, tmp_path / 'x')
    assert not any('gives ids' in text for text in inspect_checkpoint(folder).problems)
    path = folder / 'tokenizer.json'
    tree = json.loads(path.read_text())
    words = tree['model']['vocab']
    words['\u2581what'], words['\u2581action'] = words['\u2581action'], words['\u2581what']
    path.write_text(json.dumps(tree))
    assert any(
        "'what action' gives ids [1, 3158, 825], want [1, 825, 3158]" in text
        for text in inspect_checkpoint(folder).problems
    )


def test_scaled_positions_of_an_oft_checkpoint_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders['oft'].folder, tmp_path / 'x')
    edit_config(folder, lambda c: c['text_config'].update(rope_scaling={'type': 'linear'}))
    assert 'text_config.rope_scaling is' in inspect_checkpoint(folder).problems[0]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'mm_vision_tower': 'google/siglip-clip'}, 'only CLIP towers'),
        ({'mm_vision_tower': None}, 'only CLIP towers'),
        ({'mm_projector_type': 'mlp_downsample'}, 'mm_projector_type'),
        ({'mm_hidden_size': 64}, 'mm_hidden_size is 64, the tower is 32 wide'),
        ({'image_aspect_ratio': 'square'}, 'image_aspect_ratio'),
        ({'hidden_act': 'gelu'}, 'hidden_act'),
        ({'action_model_type': 'Discrete'}, "'Discrete', only DiT, Linear can be run"),
        ({'architectures': ['HybridOFT']}, 'Hybrid class of Dexbotic also answers in text'),
        ({'rope_scaling': {'type': 'yarn'}}, 'rope_scaling is'),
        ({'rope_parameters': {'rope_type': 'yarn'}}, "rope_parameters.rope_type is 'yarn'"),
        ({'llm_config': {'rope_scaling': {'type': 'yarn'}}}, 'rope_scaling is'),
        ({'llm_config': {'hidden_act': 'gelu'}}, 'hidden_act'),
        ({'use_sliding_window': True, 'sliding_window': 100}, 'sliding_window of 100: shorter'),
        ({'chunk_size': 'many'}, 'chunk_size must be a whole number above 0'),
        ({'hidden_size': None}, 'hidden_size must be a whole number above 0'),
    ],
)
def test_what_would_change_a_dexbotic_network_is_refused(folders, tmp_path, change, message):
    folder = shutil.copytree(folders['db'].folder, tmp_path / 'x')
    edit_config(folder, lambda c: c.update(change))
    assert message in inspect_checkpoint(folder).problems[0]


def test_a_window_longer_than_the_sequence_is_never_felt(folders, tmp_path):
    folder = shutil.copytree(folders['db'].folder, tmp_path / 'x')
    edit_config(folder, lambda c: c.update(use_sliding_window=True, sliding_window=200))
    loaded = load(folder)
    assert loaded.config.max_prompt == 200 - (16 + 28 + 1)
    assert 'longer ones would pass the sliding_window of 200' in ' '.join(loaded.notes)


@pytest.mark.parametrize(
    ('kind', 'word'),
    [
        ('dexbotic', 'text, token by token'),
        ('dexbotic_oft_discrete', 'discrete head'),
        ('dexbotic_memvla', 'memory'),
        ('dexbotic_pi0', 'action expert'),
        ('dexbotic_pi05', 'action expert'),
        ('dexbotic_dm0', 'flow-matching'),
        ('dexbotic_navila', 'commands no arm'),
        ('dexbotic_next', 'not a model of Dexbotic 0.2.0'),
    ],
)
def test_each_other_dexbotic_model_says_what_it_would_need(folders, tmp_path, kind, word):
    folder = shutil.copytree(folders['db'].folder, tmp_path / 'x')
    edit_config(folder, lambda c: c.update(model_type=kind))
    (problem,) = inspect_checkpoint(folder).problems
    assert word in problem and 'DB-CogACT (dexbotic_cogact) can be loaded' in problem


@pytest.mark.parametrize('wrapped', [True, False])
@pytest.mark.parametrize('bound', [2.0, [2.0], [2.0] * 7])
def test_every_form_of_dexbotic_statistics_is_read(folders, tmp_path, wrapped, bound):
    folder = shutil.copytree(folders['db'].folder, tmp_path / 'x')
    low = [0.0] * 7 if isinstance(bound, list) else 0.0
    data = {
        'default': {'min': low, 'max': bound},
        '/data/bridge': {'default': {'min': [-9.0] * 7, 'max': [9.0] * 7}},
    }
    synthetic.write_json(folder, 'norm_stats.json', {'norm_stats': data} if wrapped else data)
    loaded = load(folder)
    assert loaded.statistics.unnormalise_actions(np.full(7, 0.5)).tolist() == [1.5] * 7
    assert 'not used in serving: /data/bridge' in ' '.join(loaded.notes)


def test_statistics_of_a_pi0_like_model_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders['db'].folder, tmp_path / 'x')
    stats = {'norm_stats': {'action': {'mean': [0.0], 'std': [1.0]}}}
    synthetic.write_json(folder, 'norm_stats.json', stats)
    assert 'has no "default" with min and max' in inspect_checkpoint(folder).problems[0]


@pytest.mark.parametrize(
    ('family', 'given', 'message'),
    [
        ('oft', {'chunk': 'eight'}, 'chunk: is "eight"; it should be a valid integer'),
        (
            'oft',
            {'action': {'gripper_sense': 'up'}},
            'gripper_sense: is "up"; it should be \'one_is_open\' or',
        ),
        ('oft', {'action': {'gripper_range': [1, 0]}}, 'action.gripper_range: must ascend'),
        ('oft', {'action': {'dims': ['x']}}, 'action.gripper_dim: 6 must be'),
        ('oft', {'action': 'libero'}, 'action: is "libero"; it should be an object'),
        ('oft', {'towers': {}}, 'towers must be a list of 2 objects'),
        ('oft', {'towers': [{}, {'heads': 5}]}, 'width 48 must be a multiple of heads 5'),
        (
            'oft',
            {'towers': [{}, {'name': 3}]},
            'towers[1].name: is 3; it should be a valid string',
        ),
        ('oft', {'guidance': 2}, 'guidance: is unknown'),
        ('oft', {'camera': ['a']}, 'did you mean cameras?'),
        ('oft', {'cameras': 'top'}, 'cameras: is "top"; it should be a valid array'),
        ('oft', {'dit': {'guidance': 2}}, 'dit belongs to the families'),
        ('oft', {'platform': 'mars'}, 'platform mars'),
        ('cogact', {'platform': 'mars'}, "platform 'mars' has no row for cogact"),
        ('db', {'platform': 'mars'}, "platform 'mars' has no row for db-oft"),
        (
            'cogact',
            {'dit': {'guidance': 'much'}},
            'dit.guidance: is "much"; it should be a valid number',
        ),
        ('cogact', {'dit': {'ddim_steps': 11}}, 'dit.ddim_steps: 11; no stride'),
        ('cogact', {'decoder': {'causal': False}}, 'decoder.causal must be true'),
    ],
)
def test_a_wrong_override_is_a_sentence(folders, tmp_path, family, given, message):
    folder = shutil.copytree(folders[family].folder, tmp_path / 'x')
    synthetic.write_json(folder, 'specprune.json', given)
    report = inspect_checkpoint(folder)
    assert message in report.problems[0]
    assert 'specprune.json' in report.problems[0] or 'platform' in report.problems[0]


def test_overrides_of_every_kind_work(folders, tmp_path):
    folder = shutil.copytree(folders['cogact'].folder, tmp_path / 'x')
    given = {
        'dit': {'guidance': 1.0, 'ddim_steps': 1},
        'action': {'gripper_sense': 'one_is_closed', 'dims': ['a', 'b', 'c', 'd', 'e', 'f', 'g']},
        'towers': [{'std': [1, 1, 1]}, {}],
        'resize': 'square_lanczos',
    }
    synthetic.write_json(folder, 'specprune.json', given)
    config = load(folder).config
    assert (config.dit.guidance, config.dit.ddim_steps, config.dit.width) == (1.0, 1, 64)
    assert (config.action.gripper_sense, config.action.dims[0]) == ('one_is_closed', 'a')
    assert config.towers[0].std == (1, 1, 1) and config.towers[1].std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ('name', 'place', 'value'),
    [
        ('config.json', 'text_config', [1]),
        ('config.json', 'timm_model_ids', [{}, []]),
        ('preprocessor_config.json', 'tvf_normalize_params', 3.5),
        ('preprocessor_config.json', 'tvf_normalize_params', [{'mean': None}]),
        ('config.json', 'text_config', {'hidden_size': {}}),
        ('dataset_statistics.json', 'libero_spatial_no_noops', {'action': {'q01': [[]]}}),
        ('specprune.json', 'projector', [1]),
    ],
)
def test_a_value_of_any_kind_is_a_sentence(folders, tmp_path, name, place, value):
    folder = shutil.copytree(folders['oft'].folder, tmp_path / 'x')
    data = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    synthetic.write_json(folder, name, {**data, place: value})
    (problem, *_) = inspect_checkpoint(folder).problems
    assert str(folder) in problem or problem.startswith('statistics')
    assert 'cannot be understood' not in problem


def test_a_clone_without_lfs_gets_the_advice_to_pull(tmp_path):
    pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'
    for name in (
        'model-00001-of-00003.safetensors',
        'action_head--150000_checkpoint.pt',
        'tokenizer.json',
        'config.json',
    ):
        folder = synthetic.write_oft(tmp_path / name).folder
        (folder / name).write_text(pointer)
        problem = inspect_checkpoint(folder).problems[0]
        assert name in problem and 'a Git LFS pointer, not the file: run `git lfs pull`' in problem


def test_cogact_with_the_wrong_eps_or_parts_is_refused(tmp_path):
    folder = synthetic.write_cogact(tmp_path / 'x').folder
    edit_config(folder, lambda c: c.update(rms_norm_eps=1e-6))
    assert 'CogACT keeps the 1e-5 of Llama 2' in inspect_checkpoint(folder).problems[0]
    synthetic.write_json(folder, 'config.json', {'vla': {'base_vlm': 'other'}})
    assert "vla.base_vlm is 'other'" in inspect_checkpoint(folder).problems[0]
    path = next((folder / 'checkpoints').iterdir())
    torch.save({'model': {'projector': {}}}, path)
    assert 'must hold "model" with' in inspect_checkpoint(folder).problems[-1]
    path.unlink()
    assert any('checkpoints/<step>.pt is absent' in p for p in inspect_checkpoint(folder).problems)


def test_a_db_oft_folder_without_statistics_says_so(tmp_path):
    folder = synthetic.write_db_oft(tmp_path / 'x').folder
    (folder / 'norm_stats.json').unlink()
    loaded = load(folder)
    assert 'norm_stats.json is absent: actions are scaled to -1..1' in loaded.notes
    assert loaded.statistics.unnormalise_actions(np.full(7, 0.5)).tolist() == [0.5] * 7


def test_paths_that_are_no_checkpoint(tmp_path):
    assert 'not a folder' in inspect_checkpoint(tmp_path / 'nowhere').problems[0]
    assert 'holds no config.json' in inspect_checkpoint(tmp_path).problems[0]


def as_nobody(work):
    """Result of ``work()`` in a child without root's rights."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.write(writer, work().encode()[:4000])
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return file.read()


def test_files_without_permission_are_named(tmp_path):
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path('/tmp'):
            parent.chmod(parent.stat().st_mode | 0o055)
    folder = tmp_path / 'x'
    synthetic.write_oft(folder)
    (folder / 'config.json').chmod(0)
    said = as_nobody(lambda: '\n'.join(inspect_checkpoint(folder).problems))
    assert 'config.json: cannot be read (Permission denied)' in said
    folder.chmod(0)
    said = as_nobody(lambda: '\n'.join(inspect_checkpoint(folder).problems))
    folder.chmod(0o755)
    assert 'no permission to read; chmod u+rx it' in said


def python(code, *arguments):
    done = subprocess.run(
        [sys.executable, '-c', code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """A limit on file size fails the write half way, as a full disk does."""
    folder = tmp_path / 'sim'
    model = build(preset('tiny'), seed=1)
    save_policy_model(folder, model, word_tokenizer([]), Statistics.identity())
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    code = """
import resource, sys
from specprune_ros.models.build import build
from specprune_ros.models.load import save_policy_model
from specprune_ros.models.presets import preset
from specprune_ros.models.statistics import Statistics
from specprune_ros.models.tokens import word_tokenizer
model = build(preset('tiny'), seed=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    save_policy_model(sys.argv[1], model, word_tokenizer([]), Statistics.identity())
except ValueError as error:
    print(error)
"""
    said = python(code, folder)
    assert 'cannot be written' in said and 'make room or choose another folder' in said
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_no_code_of_the_checkpoint_is_imported(tmp_path):
    """``auto_map`` names a module that lies in the folder; it must not run."""
    folder = synthetic.write_oft(tmp_path / 'x').folder
    (folder / 'evil.py').write_text("open('pwned', 'w')")
    load(folder)
    assert not (ROOT / 'pwned').exists() and not (folder / 'pwned').exists()
    assert 'evil' not in sys.modules


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs Linux /proc')
def test_peak_memory_is_the_model_and_one_shard(tmp_path):
    """Loading holds at most 1.15 times the largest shard besides what stays."""
    written = synthetic.write_oft(
        tmp_path / 'x',
        shards=4,
        vocab=9000,
        llm={'hidden_size': 512, 'intermediate_size': 2048, 'num_hidden_layers': 8},
    )
    largest = max(p.stat().st_size for p in written.folder.glob('model-*.safetensors'))
    code = """
import sys, torch
from specprune_ros.models.load import load_policy_model, inspect_checkpoint
def peak(key):
    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key)) * 1024
load_policy_model(sys.argv[2], dtype=torch.bfloat16, progress=False)  # libraries, threads
inspect_checkpoint(sys.argv[1])
open('/proc/self/clear_refs', 'w').write('5')
before = peak('VmRSS')
loaded = load_policy_model(sys.argv[1], dtype=torch.bfloat16, progress=False)
stays = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
print(peak("VmHWM") - before, stays)
"""
    small = synthetic.write_oft(tmp_path / 'small').folder
    used, stays = map(int, python(code, written.folder, small).split())
    assert largest > 15e6 and stays > 40e6
    assert used < stays + 1.15 * largest, (used, stays, largest)


def test_a_file_larger_than_memory_is_inspected_by_its_headers(tmp_path):
    """CogACT's has 30 GB; inspection may map 8 and said: download it again."""
    path = tmp_path / 'weights.pt'
    with torch.serialization.skip_data():  # a sparse file
        torch.save({'module.a': torch.empty(1 << 20, 1 << 8), 'b': torch.empty(3)}, path)
    status = Path('/proc/self/status').read_text()
    used = 1024 * int(status.split('VmData:')[1].split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 29), hard))
    try:
        source = TensorDict(path)
        assert source.tensors['a'] == ((1 << 20, 1 << 8), 'float32')
        with pytest.raises(CheckpointError, match=r'have the 1\.1 GB of memory') as refused:
            source.read('b')
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert 'download' not in str(refused.value)
    assert len(source.read('b')) == 3


def test_headers_that_claim_more_than_the_file_holds_are_not_believed(tmp_path, monkeypatch):
    path = tmp_path / 'weights.pt'
    torch.save({'a': torch.ones(4)}, path)
    large = {'model': {'a': torch.empty(1 << 20, device='meta')}}
    monkeypatch.setattr(torch, 'load', lambda *given, **options: large)
    with pytest.raises(CheckpointError, match='larger than the file; download it again'):
        load_pt(path, headers=True)


def test_a_header_that_claims_gigabytes_is_not_believed(tmp_path):
    folder = synthetic.write_oft(tmp_path / 'x').folder
    path = shard(folder)
    path.write_bytes(struct.pack('<Q', 1 << 40) + path.read_bytes()[8:])
    assert 'not a whole safetensors file' in inspect_checkpoint(folder).problems[0]
