"""Golden packs: what the authors' own code made of tiny checkpoints, against ours.

The packs lie in ``test/data/parity`` (its README says how they were made and trimmed).
"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_models import relative

from specprune_ros.models import conventions
from specprune_ros.models.checkpoint import lora
from specprune_ros.models.checkpoint.action_meaning import describe
from specprune_ros.models.checkpoint.files import CheckpointError
from specprune_ros.models.config import ActionConfig, strided_times
from specprune_ros.models.decoder import LayerRows
from specprune_ros.models.families.db_oft import time_code
from specprune_ros.models.families.dit import ddim_steps, ddim_update, leading_times
from specprune_ros.models.flops import dense_flops, layer_macs, query_flops
from specprune_ros.models.load import inspect_checkpoint, load_policy_model
from specprune_ros.models.preprocess import (
    ImageError,
    Preprocessor,
    center_crop,
    jpeg_round_trip,
    resize_lanczos3,
    square_lanczos,
)
from specprune_ros.models.presets import DB_OFT_7B, DB_OFT_DIT_7B, OPENVLA_OFT_7B
from specprune_ros.policy import parity
from specprune_ros.policy.policy import Policy
from specprune_ros.pruning.interface import Mode, QueryContext
from specprune_ros.pruning.params import PruningParams
from specprune_ros.pruning.registry import names
from specprune_ros.pruning.rivals.base import KeepAll
from specprune_ros.pruning.similarity import patch_cosine
from specprune_ros.pruning.specprune import SpecPrune

ROOT = Path(__file__).parents[2]
POLICIES = ('oft_libero', 'oft_aloha_film', 'cogact', 'db_oft_linear', 'db_oft_dit', 'db_cogact')
# Through the JPEG and TensorFlow's Lanczos a handful of pixels lies on the other side of a tie.
ROUGH = {'oft_libero', 'oft_aloha_film'}
# Ten steps of a sampler add up last digits: 1.03e-5 with AVX2, less with AVX-512.
STEPS = {'db_oft_dit'}


@pytest.fixture(scope='session')
def pack(tmp_path_factory):
    """Folder of a pack by name, unpacked once."""
    place, found = tmp_path_factory.mktemp('parity'), {}

    def folder(name):
        if name not in found:
            found[name] = parity.unpack(parity.FOLDER / f'{name}.tar.xz', place)
        return found[name]

    return folder


def cases(folder):
    with np.load(folder / 'cases.npz', allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def embedded(loaded, data, key='0'):
    requested = parity.observation(data, key)
    images = loaded.preprocessor([image.pixels for image in requested.images.values()]).tensor
    proprio = None
    if requested.proprio is not None:
        scaled = loaded.statistics.normalise_proprio(requested.proprio)
        proprio = torch.from_numpy(scaled.astype(np.float32))
    return loaded.model.embed(images, loaded.tokenizer.encode(requested.instruction), proprio)


@pytest.mark.parametrize('name', POLICIES)
def test_a_checkpoint_gives_its_authors_numbers(pack, name):
    found = parity.run(pack(name))
    print(found)
    assert found.passed, found
    bound = 2e-4 if name in ROUGH else 2e-5 if name in STEPS else 1e-5
    assert max(found.rows or 0.0, found.normalised, found.actions) < bound, found
    assert found.images_differ <= (1e-4 * found.image_values if name in ROUGH else 0), found


def loaded_of(folder):
    return load_policy_model(folder / 'checkpoint', progress=False)


@torch.inference_mode()
def test_every_step_of_the_dit_head_is_theirs(pack):
    loaded, data = loaded_of(pack('db_oft_dit')), cases(pack('db_oft_dit'))
    model, start = loaded.model, embedded(loaded, data)
    layout = start.layout
    assert layout.length + 1 + 112 == data['0.sequence_length']
    output = model.decoder(start.hidden, layout, read=model.read(layout))
    steps = ddim_steps(100, leading_times(100, 10))
    assert [t for t, _, _ in steps] == data['0.timesteps'].tolist()
    chunks = torch.from_numpy(data['0.trajectory'])
    for x, after, (t, now, before) in zip(chunks, chunks[1:], steps, strict=False):
        eps = model.predict_noise(output.context, layout.length, x, t)
        assert relative(ddim_update(x, eps, now, before, limit=1.0), after) < 1e-5


@torch.inference_mode()
def test_reusing_the_prefix_equals_running_everything_again(pack):
    loaded, data = loaded_of(pack('db_oft_dit')), cases(pack('db_oft_dit'))
    model, start = loaded.model, embedded(loaded, data)
    layout, x = start.layout, torch.from_numpy(data['0.noise'])
    output = model.decoder(start.hidden, layout, read=model.read(layout))
    reused = model.predict_noise(output.context, layout.length, x, 90)
    rows = model.noisy_action(x.reshape(1, -1, 1))
    whole = torch.cat((start.hidden, time_code(90, 64, x.device)[None, None], rows), 1)
    wide = replace(layout, length=whole.shape[1], action=(layout.length + 1, whole.shape[1]))
    again = model.action_head(model.decoder(whole, wide).rows(*wide.action, wide))[0]
    assert relative(reused, again) < 2e-6


@pytest.mark.parametrize('name', ['db_oft_dit', 'db_cogact'])
@torch.inference_mode()
def test_keeping_everything_is_dense_bit_for_bit(pack, name):
    loaded, data = loaded_of(pack(name)), cases(pack(name))
    model, start = loaded.model, embedded(loaded, data)
    layout, noise = start.layout, torch.from_numpy(data['0.noise'])
    dense = model.decoder(start.hidden, layout, read=model.read(layout))
    kept = model.decoder(start.hidden, layout, KeepAll(layout), read=model.read(layout))
    one, two = (model.head(output, layout, noise) for output in (dense, kept))
    assert torch.equal(one, two)
    # The account of a dense pass is that of its layout, the diffusion steps included.
    assert query_flops(loaded.config, dense) == dense_flops(loaded.config, layout)


@pytest.mark.parametrize('name', ['db_oft_dit', 'db_cogact'])
@pytest.mark.parametrize(
    'methods', [('specprune', 'dense'), pytest.param(names(), marks=pytest.mark.slow)]
)
def test_every_method_prunes_the_prefix(pack, name, methods):
    data, policy = cases(pack(name)), Policy(loaded_of(pack(name)))
    requested, noise = parity.observation(data, '0'), data['0.noise']
    for method in methods:
        policy.set_params(PruningParams().replace(pruner=method, mode='coarse'))
        policy.reset(method)
        for query in range(6):  # faster from query to query: ADP's gate knows that after four
            stamp, place = 10**9 * (1 + query), np.array([0.01 * query**2, 0, 0])
            images = {c: replace(image, stamp_ns=stamp) for c, image in requested.images.items()}
            given = replace(requested, images=images, position=place)
            found = policy.act(given, noise=noise)
        assert np.isfinite(found.actions).all()
        assert (found.flops_ratio < 1.0) == (method != 'dense'), method
        assert (found.tokens.mean < found.tokens.total) == (method not in ('dense', 'vla_cache'))


def test_operations_with_the_prefix_reused_at_full_size():
    """DB-OFT's DiT head at 7B, one image: the decoder's operations against running all rows."""
    config, prefix = DB_OFT_DIT_7B, 630
    reused = layer_macs(config.decoder, LayerRows(prefix, prefix, prefix))
    reused += 10 * layer_macs(config.decoder, LayerRows(113, 113, prefix + 113))
    again = 10 * layer_macs(config.decoder, LayerRows(*(prefix + 113,) * 3))
    assert again / reused == pytest.approx(4.2, abs=0.05)


def test_images_of_openvla_oft_are_tensorflows(pack):
    data = cases(pack('preprocess'))
    differ = 0
    for key in ('1',):
        decoded = jpeg_round_trip(data[f'{key}.picture'])
        assert np.array_equal(decoded, data[f'{key}.decoded'])
        resized = resize_lanczos3(torch.from_numpy(decoded), 224).numpy()
        off = np.abs(resized.astype(int) - data[f'{key}.resized'])
        assert off.max() <= 1
        differ += int((off > 0).sum())
        cropped = center_crop(torch.from_numpy(data[f'{key}.resized'])).numpy()
        assert np.array_equal(cropped, data[f'{key}.cropped'])
    assert differ <= 2  # of 150528: on a rounding tie


def test_an_image_of_the_right_size_is_encoded_again_only_where_requested():
    """``prepare_observation`` of LIBERO does; ``prepare_images_for_vla`` does not."""
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    kept = Preprocessor(OPENVLA_OFT_7B).image(image)
    again = Preprocessor(replace(OPENVLA_OFT_7B, reencode=True)).image(image)
    assert torch.equal(kept, center_crop(torch.from_numpy(image)))
    assert torch.equal(again, center_crop(torch.from_numpy(jpeg_round_trip(image))))


def test_images_of_cogacts_deploy_script_are_a_choice(pack):
    data = cases(pack('cogact'))
    config = loaded_of(pack('cogact')).config
    image = data['0.picture.third_person']
    seen = Preprocessor(config.override({'resize': 'square_lanczos'})).image(image)
    assert np.array_equal(seen, data['0.deploy_seen'][0])
    with pytest.raises(ImageError, match='landscape or square images only'):
        square_lanczos(image.transpose(1, 0, 2), 224)


def test_guidance_up_to_one_runs_one_branch(pack):
    loaded, data = loaded_of(pack('cogact')), cases(pack('cogact'))
    head, x = loaded.model.action_head, torch.from_numpy(data['0.noise'])
    z = torch.from_numpy(data['0.head_rows'][0])
    sizes = []
    head.register_forward_hook(lambda _, given, __: sizes.append(len(given[0])))
    with torch.inference_mode():
        both = head.sample(z, x)
        head.config = replace(head.config, guidance=1.0)
        alone = head.sample(z, x)
    assert sizes == [2] * 10 + [1] * 10 and not torch.equal(both, alone)


@pytest.mark.parametrize(
    ('steps', 'times'), [(1, [50]), (3, [0, 34, 68]), (10, list(range(0, 100, 10)))]
)
def test_cogact_spaces_its_steps_as_its_authors(steps, times):
    assert strided_times(100, steps) == times


def test_the_document_holds_the_table_of_conventions():
    assert conventions.as_markdown() in (ROOT / 'docs/how-to/checkpoints.md').read_text()


def test_rows_for_a_robot_follow_the_convention():
    """CALVIN: -1 is closed, 7 of 16 rows are run; ManiSkill2: 1 is closed."""
    rows = np.zeros((16, 7))
    rows[:, 6] = np.linspace(-1, 1, 16)
    calvin = conventions.find('calvin', 'db-oft')
    config = DB_OFT_7B.override({'execute': 7, 'action': asdict(calvin.fields['action'])})
    sent = conventions.for_robot(config, rows)
    assert sent.shape == (7, 7) and config.action.gripper_threshold == 0.0
    np.testing.assert_allclose(sent[:, 6], (rows[:7, 6] + 1) / 2)
    maniskill = conventions.find('maniskill2', 'db-cogact').fields['action']
    assert (maniskill.gripper_sense, maniskill.gripper_threshold) == ('one_is_closed', 0.5)
    libero = [conventions.find('libero', f).fields['action'] for f in ('db-oft', 'db-cogact')]
    assert [a.gripper_sense for a in libero] == ['one_is_open', 'one_is_closed']
    assert conventions.find('robotwin', 'db-cogact').fields['action'].reference == 'observation'


@pytest.mark.parametrize(
    ('folder', 'platform'),
    [
        ('simpler-db-oft', 'simpler/db-oft+db-cogact'),
        ('robotwin-db-cogact/adjust_bottle', 'robotwin/db-oft+db-cogact'),
        ('models--Dexmal--calvin-db-oft/snapshots/0a1b', 'calvin/db-oft+db-cogact'),
        ('libero-db-cogact-franka/checkpoint-3000', ''),
        ('checkpoint', ''),
    ],
)
def test_a_dexbotic_folders_name_tells_its_benchmark(pack, tmp_path, folder, platform):
    place = tmp_path / folder
    shutil.copytree(pack('db_oft_linear') / 'checkpoint', place)
    report = inspect_checkpoint(place)
    if 'robotwin' in folder:  # two arms, 16 numbers: not this policy's
        platform = ''
    assert report.ok and report.config.convention == platform
    said = 'raw numbers of norm_stats.json' in ' '.join(report.notes)
    assert said == (not platform)
    # Nothing is assumed: neither a unit nor a kind of motion that an executor would take.
    assert (report.config.action.kind == 'joint_position') == (not platform)
    if 'simpler' in platform:
        assert (report.config.pre_resize, report.config.pre_filter) == (224, 'area')


def test_what_raw_numbers_mean_is_stated_as_a_whole(pack, tmp_path):
    """A fine-tune on a lab's arm moved it by metres and Euler angles that nobody had stated."""
    folder = shutil.copytree(pack('db_cogact') / 'checkpoint', tmp_path / 'franka')
    report = inspect_checkpoint(folder)
    assert report.ok and report.config.action.dims[0] == 'action_1'
    assert [row.value for row in report.meaning] == ['raw numbers: no executor takes them']
    written = describe(report.to_dict())
    nulls = [name for name, value in written['action'].items() if value is None]
    assert set(written['action']) - set(nulls) == {'accumulates'}
    assert written['control_hz'] is None and 'platform' not in written
    file = folder / 'specprune.json'
    stated = {**asdict(ActionConfig(rotation='euler_xyz')), 'accumulates': 'command'}
    del stated['scale']
    file.write_text(json.dumps({'control_hz': 15.0, 'action': stated}))
    (problem,) = inspect_checkpoint(folder).problems
    assert 'give platform, or state action.scale in' in problem
    stated['scale'] = [1.0] * 7
    file.write_text(json.dumps({'control_hz': 15.0, 'action': stated}))
    report = inspect_checkpoint(folder)
    assert report.ok and report.config.action == ActionConfig(rotation='euler_xyz')


def test_lora_is_merged_in_float32(pack):
    (file,) = (pack('oft_aloha_film') / 'checkpoint').glob('vision_backbone--*')
    stored = torch.load(file, weights_only=True)
    merged = lora.merge(file, stored)
    name = 'featurizer.blocks.0.block.attn.qkv.weight'
    assert merged[name].dtype == torch.float32
    assert not torch.equal(merged[name], merged[name].bfloat16().float())


@pytest.mark.parametrize(
    'base',
    [torch.ones(2, 2), torch.ones(1, 1).expand(200_000, 200_000)],
    ids=['other', 'repeated'],
)
def test_lora_factors_that_claim_any_size_are_refused_before_it_is_made(tmp_path, base):
    """Their product would have 160 GB."""
    stored = {
        'x.lora_A.default.weight': torch.ones(1, 200_000),
        'x.lora_B.default.weight': torch.ones(200_000, 1),
        'x.base_layer.weight': base,
    }
    with pytest.raises(CheckpointError, match='do not fit its weight'):
        lora.merge(tmp_path / 'backbone.pt', stored)


@torch.inference_mode()
def test_the_authors_preset_keeps_what_their_code_keeps(pack):
    """Two queries in a row, boundary by boundary, id for id; ``c2_package_rows`` is their code
    with the differences that docs/reference/pruners.md lists.
    """
    loaded, data = loaded_of(pack('oft_libero')), cases(pack('specprune'))
    params = PruningParams.preset_of('authors')
    prompt = loaded.tokenizer.encode(str(data['instruction']))
    scaled = loaded.statistics.normalise_proprio(data['proprio'])
    proprio = torch.from_numpy(scaled.astype(np.float32))
    carry, compared = {}, 0
    for query in range(2):
        now, then = (torch.from_numpy(data[f'{query}.{name}']) for name in ('now', 'then'))
        rows = loaded.model.embed(loaded.preprocessor.normalise(now), prompt, proprio)
        layout = rows.layout
        context = QueryContext(
            layout=layout,
            params=params,
            mode=Mode.FINE if data[f'{query}.precise'] else Mode.COARSE,
            similarity=patch_cosine(now, then, loaded.config.grid) if query else None,
            carry=carry,
        )
        run = SpecPrune().begin(context)
        output = loaded.model.decoder(rows.hidden, layout, run, read=layout.action)
        outcome = run.finish()
        carry = outcome.carry
        assert [boundary for boundary, _ in outcome.kept] == [1, 2, 11, 16, 21, 26]
        theirs = f'{query}.c2_package_rows'
        for boundary, ids in outcome.kept:
            assert ids.tolist() == data[f'{theirs}.kept.{boundary}'].tolist(), (query, boundary)
            compared += 1
        actions = loaded.model.head(output, layout)
        assert relative(actions, torch.from_numpy(data[f'{theirs}.normalised'])) < 2e-5
    assert compared == 12
