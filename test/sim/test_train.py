"""Recording and training at the smallest size that still runs every part."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from specprune_ros.cli.train import change, note, record_all, results_of
from specprune_ros.models.build import build
from specprune_ros.models.families.oft import OpenVLAOFT
from specprune_ros.models.load import load_policy_model
from specprune_ros.models.tokens import Prompt
from specprune_ros.policy.build import build_policy
from specprune_ros.pruning.params import PruningParams
from specprune_ros.sim.arm.world import World
from specprune_ros.sim.evaluation.evaluate import run_row
from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
from specprune_ros.sim.tasks.vocabulary import instructions
from specprune_ros.sim.training import dataset
from specprune_ros.sim.training.export import check_shipped, export
from specprune_ros.sim.training.grow import (
    grow,
    grown,
    layer_sources,
    patch_kernel,
    position_table,
)
from specprune_ros.sim.training.recipe import FAST, Recipe, Stage, policy_config, tokenizer
from specprune_ros.sim.training.train import Frames, Trainer, TrainError, fit

STAGE = Stage(
    'first', 'slow', shards=2, shard_episodes=4, keep=1.0, tower_depth=3, ground_steps=6,
    ground_batch=8, steps=6, batch=8, warm_up=2,
)  # fmt: skip
GROWN = replace(STAGE, name='second', patch=8, depth=12, tower_depth=2, ground_steps=0, steps=1)
SMALL = Recipe(
    width=32, heads=2, mlp=32, tower_width=24, tower_mlp=24, precision='float32',
    stages=(STAGE, GROWN),
)  # fmt: skip


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp('data')
    dataset.record(SMALL, STAGE, made, range(2))
    return made


@pytest.fixture(scope='module')
def shards(folder):
    return [dataset.load_shard(dataset.shard_path(folder, i)) for i in range(2)]


@pytest.fixture(scope='module')
def frames(shards):
    return Frames(shards, SMALL, STAGE)


def test_the_policy_is_the_real_class_at_a_small_size():
    config = policy_config(Recipe())
    assert config.family == 'openvla-oft' and config.decoder.depth >= 8 and config.film
    assert config.vision_tokens // len(config.cameras) >= 64 and len(config.towers) == 2
    assert config.chunk == 8 and config.action_dim == 7 and not config.decoder.causal


def test_recording_is_fixed_by_the_shard_number(folder, shards, tmp_path):
    dataset.record(SMALL, STAGE, tmp_path, [1])
    again = dataset.load_shard(dataset.shard_path(tmp_path, 1))
    assert dataset.data_hash([again]) == dataset.data_hash([shards[1]])
    assert dataset.data_hash([again]) != dataset.data_hash([shards[0]])
    before = dataset.shard_path(folder, 0).stat().st_mtime_ns
    dataset.record(SMALL, STAGE, folder, [0])  # there already
    assert dataset.shard_path(folder, 0).stat().st_mtime_ns == before


def test_frames_hold_what_the_policy_sees(shards, frames):
    shard = shards[0]
    image = shard.images(0, 2, 128)
    assert image.shape == (2, 128, 128, 3) and image.std() > 10
    assert set(map(str, shard.words)) <= set(instructions())
    assert np.isfinite(shard.actions).all() and np.abs(shard.actions[..., :3]).max() < 0.0061
    assert shard.valid[:, 0].all()  # the expert's own next action is always right
    assert 0.5 < shard.valid.mean() < 1.0 and 0.2 < shard.far.mean() < 0.9
    batch = frames.batch(np.arange(4))
    assert batch.actions.abs().max() < 3 and batch.patches.max() < 64
    assert (batch.patches[:, :, 0] >= 0).float().mean() > 0.5  # the named cube is mostly in view


def test_the_masked_label_is_what_was_played(frames):
    """Un-normalising the labels gives back the recorded rows."""
    raw = np.concatenate([shard.actions for shard in frames.shards])
    assert np.allclose(frames.statistics.unnormalise_actions(frames.actions), raw, atol=1e-6)


def test_batches_prefer_far_frames(frames):
    rng = np.random.default_rng(0)
    share = np.mean([frames.far[frames.draw(rng, 32)].mean() for _ in range(20)])
    assert share == pytest.approx(STAGE.far_share, abs=0.1)


def test_grounding_leaves_the_decoder_alone(frames):
    trainer = Trainer(SMALL, frames)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    action, patch, hit = trainer.step()
    assert math.isnan(action) and patch > 0 and 0 <= hit <= 1
    changed = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith('vision.') for k in changed)
    assert not any(k.startswith(('decoder.layers', 'action_head')) for k in changed)


def test_loss_falls_on_a_batch(frames):
    trainer = Trainer(SMALL, frames)
    trainer.done = STAGE.ground_steps
    for group in trainer.optimiser.param_groups:
        group['lr'] = 3e-3
    batch = frames.batch(frames.groups[min(frames.groups)][:8])
    losses = []
    for _ in range(25):
        loss = trainer.action_loss(batch, trainer.embed(batch)[0])
        loss.backward()
        trainer.optimiser.step()
        trainer.optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_interrupted_training_goes_on_as_if_it_had_not_been(frames, tmp_path):
    whole = Trainer(SMALL, frames)
    fit(whole, tmp_path / 'whole.pt')
    part = Trainer(SMALL, frames)
    fit(part, tmp_path / 'part.pt', stop=lambda: part.done == 7)
    assert part.done == 7
    rest = Trainer(SMALL, frames)
    rest.load(tmp_path / 'part.pt')
    fit(rest, tmp_path / 'part.pt')
    assert rest.done == whole.done == 12
    for name, value in whole.average.items():
        assert torch.equal(value, rest.average[name]), name


def test_a_broken_or_foreign_state_is_refused(frames, tmp_path):
    path = tmp_path / 'state.pt'
    trainer = Trainer(SMALL, frames)
    trainer.save(path)
    with pytest.raises(TrainError, match='another recipe'):
        Trainer(replace(SMALL, seed=1), frames).load(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(TrainError, match='delete it'):
        trainer.load(path)


def test_a_broken_shard_is_named(tmp_path):
    path = dataset.shard_path(tmp_path, 3)
    path.write_bytes(b'not a shard')
    with pytest.raises(ValueError, match='shard_00003'):
        dataset.load_shard(path)
    with pytest.raises(TrainError, match='record data first'):
        Frames([], SMALL, STAGE)


@pytest.fixture(scope='module')
def exported(frames, tmp_path_factory):
    trainer = Trainer(SMALL, frames)
    trainer.step()
    return export(trainer, tmp_path_factory.mktemp('weights'), 'abc', {'note': 1})


def test_the_export_is_a_policy_that_plays(exported):
    """Saved, loaded by the policy's own loader, run in closed loop, with pruning."""
    policy = build_policy(str(exported), device='cpu', threads=1)
    assert isinstance(policy.loaded.model, OpenVLAOFT)
    world = World()
    results = []
    runner = PolicyRunner(policy, results.append)
    row = run_row(world, runner, 'move', 'instructed', [3])
    world.close()
    assert row.episodes == 1 and len(results) >= 3
    assert results[0].reset is not None and results[1].reset is None
    assert results[1].history_age == pytest.approx(0.4, abs=0.31)
    assert results[2].tokens.mean < results[2].tokens.total == 128
    again = build_policy(
        str(exported), device='cpu', threads=1, params=PruningParams(pruner='dense')
    )
    assert again.params.pruner == 'dense'


def test_weights_belong_to_their_recipe(exported):
    record = check_shipped(exported)
    assert (
        Recipe.from_dict(record['recipe']) == SMALL.until(STAGE) and record['data_sha256'] == 'abc'
    )
    path = exported / 'recipe.json'
    kept = path.read_text()
    path.write_text(json.dumps({**record, 'recipe': {**record['recipe'], 'seed': 7}}))
    with pytest.raises(TrainError, match='changed after training'):
        check_shipped(exported)
    path.write_text(kept)
    weights = exported / 'model.safetensors'
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TrainError, match='not the file that was trained'):
        check_shipped(exported)
    weights.write_bytes(whole)


def test_stages_share_what_stays_and_end_at_ofts_proportions():
    """Two cameras of 16 x 16, at least 12 layers, small steps at 20 Hz, four families."""
    last = Recipe().stages[-1]
    config = policy_config(Recipe())
    assert config.grid == (16, 16) and config.decoder.depth >= 12 and config.control_hz == 20
    trained_on = {name for name, _ in Recipe().data(last)}
    families = {f for s in Recipe().stages if s.data in trained_on for f in s.families}
    assert families == {'move', 'lift', 'put', 'two_step'}
    assert Recipe.from_dict(json.loads(json.dumps(Recipe().to_dict()))) == Recipe()
    first = Recipe().stages[0]
    assert first.pace == FAST and first.things == 2 and last.things == 4
    assert Recipe().until(first).hash != Recipe().hash


def test_copies_of_layers_come_before_their_originals():
    sources = layer_sources(8, 16)
    assert [i for i, copy in sources if not copy] == list(range(8)) and len(sources) == 16
    assert sources[:2] == [(0, False), (1, False)]  # what runs before the static prune
    for (index, copy), (after, _) in zip(sources, sources[1:], strict=False):
        assert not copy or after == index
    with pytest.raises(ValueError, match='does not shrink'):
        layer_sources(8, 6)


def test_a_deeper_policy_does_what_the_old_one_did(frames):
    """And its last layer attends as the old one's: a copy adds nothing until it is trained."""
    old = Trainer(SMALL, frames)
    old.step()
    before = frames.config
    after = replace(before, decoder=replace(before.decoder, depth=13))
    model = build(after, 1)
    weights = grow(old.model.state_dict(), before, model.state_dict(), after)
    model.load_state_dict(weights)
    batch = frames.batch(frames.groups[min(frames.groups)][:4])
    with torch.no_grad():
        acted = old.predict(batch, old.embed(batch)[0])
        hidden = model.embed_rows(old._pixels(batch), batch.ids, batch.proprio)[0]
        layout = model.layout(Prompt((1,) * batch.ids.shape[1], (1, 3)))
        output = model.decoder(hidden, layout, read=model.read(layout))
        actions = model.action_head(output.rows(*layout.action, layout))
    torch.testing.assert_close(actions, acted, atol=1e-5, rtol=1e-5)
    copied = [i for i, (_, copy) in enumerate(layer_sources(8, 13)) if copy]
    for number in copied:
        assert not weights[f'decoder.layers.{number}.down.weight'].any()
        own, original = (
            weights[f'decoder.layers.{n}.attn.qkv.weight'] for n in (number, number + 1)
        )
        assert torch.equal(own, original)


def test_finer_patches_see_a_flat_colour_as_before():
    rng = torch.Generator().manual_seed(0)
    smooth = torch.randn(5, 3, 4, 4, generator=rng)
    kernel = torch.nn.functional.interpolate(smooth, (16, 16), mode='bilinear').flatten(1)
    small = patch_kernel(kernel, 16, 8)
    assert small.shape == (5, 3 * 64)

    def seen(weight):
        return weight.unflatten(1, (3, -1)).sum(-1)

    torch.testing.assert_close(seen(small), seen(kernel), atol=2.0, rtol=0.05)
    table = position_table(torch.arange(4.0).reshape(1, 4, 1), 2, 4)
    assert table.shape == (1, 16, 1)
    assert table[0, [0, 3, 12, 15], 0].tolist() == pytest.approx([0, 1, 2, 3], abs=1e-5)


def test_new_words_begin_near_those_of_their_colour(exported):
    config = policy_config(SMALL, GROWN)
    weights = grown(exported, config, tokenizer(), 0)
    table, ids = weights['decoder.embed_tokens.weight'], tokenizer().get_vocab()
    trained = load_policy_model(exported, progress=False).model.decoder.embed_tokens.weight
    assert torch.equal(table[ids['red cube']], trained[ids['red cube']])
    assert weights['vision.towers.0.pos_embed'].shape[1] == 256
    model = build(config, 0)
    model.load_state_dict(weights)


def test_a_later_stage_goes_on_from_the_one_before(shards, exported, tmp_path):
    config = policy_config(SMALL, GROWN)
    frames = Frames(shards, SMALL, GROWN)
    trainer = Trainer(SMALL, frames, start=grown(exported, config, tokenizer(), 0))
    fit(trainer, tmp_path / 'state.pt')
    folder = export(trainer, tmp_path / 'policy', 'abc', {})
    record = check_shipped(folder)
    assert Recipe.from_dict(record['recipe']) == SMALL
    assert load_policy_model(folder, progress=False).config == policy_config(SMALL)


def test_the_policy_drives_and_the_expert_takes_over(exported):
    """Frames begin where the policy has driven; their labels are the expert's own rows."""
    stage = replace(
        STAGE, name='recover', data='recover', policy_share=1.0, also=('slow',), families=('put',)
    )
    recipe = replace(SMALL, stages=(STAGE, stage))
    assert recipe.data(stage) == [('recover', 2), ('slow', 2)]
    with pytest.raises(ValueError, match='needs the policy of a stage before'):
        dataset.EpisodeRecorder(recipe, stage)
    other = replace(stage, also=('nothing',))
    with pytest.raises(ValueError, match='also.*nothing'):
        replace(recipe, stages=(STAGE, other)).data(other)
    recorder = dataset.EpisodeRecorder(recipe, stage, exported)

    class Upwards:
        def reset(self):
            pass

        def __call__(self, observation):
            return np.tile([0.0, 0.0, 0.006, 0.0, 0.0, 0.0, 1.0], (8, 1))

    try:
        assert len(recorder.episode(1)) > 3  # a real, if random, policy drives
        recorder.runner = Upwards()
        frames = recorder.episode(1)
    finally:
        recorder.close()
    highest, *_, lowest = sorted(frames, key=lambda frame: -frame['proprio'][2])
    assert highest['proprio'][2] > lowest['proprio'][2] + 0.05
    assert highest['valid'][:4].all() and highest['actions'][:4, 2].mean() < -0.002  # down


def test_a_colour_stays_with_its_noun():
    made = tokenizer()
    pieces = made.encode('put the red cube on the blue plate').tokens
    assert pieces == ['<s>', 'put', 'the', 'red cube', 'on', 'the', 'blue plate']
    second = made.encode('set the red cube on the blue plate, then the green one on the red one')
    assert second.tokens[-3:] == ['the', 'green one', 'on the red one']
    assert '<unk>' in made.encode('juggle the red cube').tokens
    assert made.get_vocab_size() <= policy_config(Recipe()).decoder.vocab


def test_what_another_recipe_made_is_not_gone_on_with(tmp_path):
    """It was taken as it was: `--set seed=1` trained nothing and reported success."""
    first = SMALL.until(STAGE)
    record = {'recipe_sha256': first.hash, 'results': {'validation': {'action': 0.5}}}
    (tmp_path / 'recipe.json').write_text(json.dumps(record))
    assert results_of(first, tmp_path) == {'validation': {'action': 0.5}}
    with pytest.raises(TrainError, match='trained by another recipe; give another --work'):
        results_of(replace(first, seed=1), tmp_path)
    note(tmp_path, {'closed_loop': [{'mean_steps': math.nan}]})  # of no success
    assert 'NaN' not in (tmp_path / 'recipe.json').read_text()

    data = tmp_path / 'data'
    data.mkdir()
    (data / 'shard_00000.npz').write_bytes(b'of nobody knows what')
    with pytest.raises(TrainError, match='recorded by another recipe'):
        record_all(SMALL, STAGE, data, 1)
    (data / 'recording.sha256').write_text(SMALL.recording(STAGE))
    (data / 'shard_00001.npz').write_bytes(b'of this recipe')
    record_all(SMALL, STAGE, data, 1)  # nothing is missing
    with pytest.raises(TrainError, match='recorded by another recipe'):
        record_all(SMALL, replace(STAGE, keep=0.5), data, 1)
    assert SMALL.recording(GROWN) == SMALL.recording(STAGE)  # they share their data
    driven = replace(GROWN, data='driven', policy_share=1.0)
    made = replace(SMALL, stages=(STAGE, driven))
    other = replace(made, stages=(replace(STAGE, steps=7), driven))
    assert made.recording(driven) != other.recording(driven)


def test_recipe_changes_from_the_command_line():
    changed = change(['slow.steps=5', 'deep.learning_rate=0.1', 'seed=3'])
    by_name = {stage.name: stage for stage in changed.stages}
    assert (by_name['slow'].steps, by_name['deep'].learning_rate, changed.seed) == (5, 0.1, 3)
    assert by_name['coarse'] == Recipe().stages[0]
    for bad in ('steps', 'nonsense=1', 'slow.steps=many', 'slow.steps=0', 'fast.steps=1',
                'precision=half', 'stages=1'):  # fmt: skip
        with pytest.raises(ValueError, match=bad.split('=')[0].split('.')[0]):
            change([bad])
