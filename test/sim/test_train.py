"""Recording and training at the smallest size that still runs every part."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from specprune_ros.cli.train import change
from specprune_ros.models.families.oft import OpenVLAOFT
from specprune_ros.policy.build import build_policy
from specprune_ros.pruning.params import PruningParams
from specprune_ros.sim.arm.world import World
from specprune_ros.sim.evaluation.evaluate import run_row
from specprune_ros.sim.evaluation.policy_runner import PolicyRunner
from specprune_ros.sim.tasks.vocabulary import instructions
from specprune_ros.sim.training import dataset
from specprune_ros.sim.training.export import check_shipped, export
from specprune_ros.sim.training.recipe import Recipe, policy_config, tokenizer
from specprune_ros.sim.training.train import Frames, Trainer, TrainError, fit

SMALL = Recipe(
    width=32, depth=8, heads=2, mlp=32, tower_width=24, tower_depth=2, tower_mlp=24,
    shards=2, shard_episodes=4, ground_steps=6, ground_batch=8, steps=6, batch=8, warm_up=2,
    precision='float32',
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
    dataset.record(SMALL, made, range(2))
    return made


@pytest.fixture(scope='module')
def shards(folder):
    return [dataset.load_shard(dataset.shard_path(folder, i)) for i in range(2)]


@pytest.fixture(scope='module')
def frames(shards):
    return Frames(shards, SMALL)


def test_the_policy_is_the_real_class_at_a_small_size():
    config = policy_config(Recipe())
    assert config.family == 'openvla-oft' and config.decoder.depth >= 8 and config.film
    assert config.vision_tokens // len(config.cameras) >= 64 and len(config.towers) == 2
    assert config.chunk == 8 and config.action_dim == 7 and not config.decoder.causal


def test_recording_is_fixed_by_the_shard_number(folder, shards, tmp_path):
    dataset.record(SMALL, tmp_path, [1])
    again = dataset.load_shard(dataset.shard_path(tmp_path, 1))
    assert dataset.data_hash([again]) == dataset.data_hash([shards[1]])
    assert dataset.data_hash([again]) != dataset.data_hash([shards[0]])
    before = dataset.shard_path(folder, 0).stat().st_mtime_ns
    dataset.record(SMALL, folder, [0])  # there already
    assert dataset.shard_path(folder, 0).stat().st_mtime_ns == before


def test_frames_hold_what_the_policy_sees(shards, frames):
    shard = shards[0]
    image = shard.images(0, 2, 128)
    assert image.shape == (2, 128, 128, 3) and image.std() > 10
    assert set(map(str, shard.words)) <= set(instructions())
    assert np.isfinite(shard.actions).all() and np.abs(shard.actions[..., :3]).max() < 0.021
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
    assert share == pytest.approx(SMALL.far_share, abs=0.1)


def test_grounding_leaves_the_decoder_alone(frames):
    trainer = Trainer(SMALL, frames)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    action, patch, hit = trainer.step()
    assert math.isnan(action) and patch > 0 and 0 <= hit <= 1
    changed = {k for k, v in trainer.model.state_dict().items() if not torch.equal(v, before[k])}
    assert any(k.startswith('vision.') for k in changed)
    assert not any(k.startswith(('decoder.layers', 'action_head')) for k in changed)


def test_loss_falls_on_a_batch(frames):
    trainer = Trainer(replace(SMALL, ground_steps=1, learning_rate=3e-3), frames)
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
        Frames([], SMALL)


@pytest.fixture(scope='module')
def exported(frames, tmp_path_factory):
    trainer = Trainer(SMALL, frames)
    trainer.step()
    return export(trainer, tmp_path_factory.mktemp('weights'), 'abc', {'note': 1})


def test_the_export_is_a_policy_that_plays(exported):
    """Saved, loaded by the policy's own loader, asked in closed loop, with pruning."""
    policy = build_policy(str(exported), device='cpu', threads=1)
    assert isinstance(policy.loaded.model, OpenVLAOFT)
    world = World()
    results = []
    runner = PolicyRunner(policy, results.append)
    row = run_row(world, runner, 'move', 'asked', [3])
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
    assert Recipe(**record['recipe']) == SMALL and record['data_sha256'] == 'abc'
    path = exported / 'recipe.json'
    kept = path.read_text()
    path.write_text(json.dumps({**record, 'recipe': {**record['recipe'], 'steps': 7}}))
    with pytest.raises(TrainError, match='changed after training'):
        check_shipped(exported)
    path.write_text(kept)
    weights = exported / 'model.safetensors'
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TrainError, match='not the file that was trained'):
        check_shipped(exported)
    weights.write_bytes(whole)


def test_a_colour_stays_with_its_noun():
    made = tokenizer()
    pieces = made.encode('put the red cube on the blue plate').tokens
    assert pieces == ['<s>', 'put', 'the', 'red cube', 'on', 'the', 'blue plate']
    assert '<unk>' in made.encode('juggle the red cube').tokens
    assert made.get_vocab_size() <= policy_config(Recipe()).decoder.vocab


def test_recipe_changes_from_the_command_line():
    assert change(['steps=5', 'learning_rate=0.1']) == replace(
        Recipe(), steps=5, learning_rate=0.1
    )
    for bad in ('steps', 'nonsense=1', 'steps=many', 'steps=0', 'precision=half'):
        with pytest.raises(ValueError, match=bad.split('=')[0]):
            change([bad])
