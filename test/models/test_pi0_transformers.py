"""pi0 against the implementation in transformers, an independent one, on random weights."""

import shutil

import numpy as np
import pytest
import torch
from golden import flow_packs
from safetensors.torch import load_file, save_file

from specprune_ros.policy import parity_flow

transformers = pytest.importorskip('transformers')
if not hasattr(transformers, 'PI0ForConditionalGeneration'):
    pytest.skip('this transformers has no PI0', allow_module_level=True)

PACK = flow_packs() / 'pi0_lerobot'
X = 'model.paligemma_with_expert.'
IMAGE = 7  # a word that stands for a row of an image


def gemma(width, mlp):
    return dict(
        model_type='gemma', hidden_size=width, intermediate_size=mlp, num_hidden_layers=3,
        num_attention_heads=8, num_key_value_heads=1, head_dim=16, vocab_size=383,
        hidden_activation='gelu_pytorch_tanh', rms_norm_eps=1e-6, rope_theta=10000.0,
        use_bidirectional_attention=True,
    )  # fmt: skip


def theirs(tensors):
    vision = dict(
        model_type='siglip_vision_model', hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14,
        vision_use_head=False, projection_dim=64,
    )  # fmt: skip
    vlm = dict(
        model_type='paligemma', text_config=gemma(64, 128), vision_config=vision,
        image_token_index=IMAGE, image_token_id=IMAGE, projection_dim=64, hidden_size=64,
    )  # fmt: skip
    config = transformers.PI0Config(
        vlm_config=vlm, dit_config=gemma(32, 64), chunk_size=6, image_token_id=IMAGE
    )
    model = transformers.PI0ForConditionalGeneration(config).eval()
    renamed = {}
    for name, value in tensors.items():
        if 'lm_head' in name:
            continue
        name = name.replace(f'{X}paligemma.model.', 'model.vlm.')
        name = name.replace(f'{X}gemma_expert.model.', 'model.dit.')
        name = name.replace('vision_tower.vision_model.', 'vision_tower.')
        if name.startswith(('model.state_proj', 'model.action_time', 'model.action_in')):
            name = name.replace('model.', 'embed_action_time.', 1)
        if name.startswith('model.action_out'):
            name = name.removeprefix('model.')
        renamed[name] = value
    lost, strange = model.load_state_dict(renamed, strict=False)
    assert not strange
    assert lost == ['model.dit.embed_tokens.weight']
    return model


@torch.inference_mode()
def test_transformers_agrees_on_random_weights(tmp_path):
    shutil.copytree(PACK, tmp_path / 'pack')
    path = tmp_path / 'pack/checkpoint/model.safetensors'
    generator = torch.Generator().manual_seed(11)
    tensors = {
        name: torch.randn(value.shape, generator=generator) * value.std().clamp_min(0.02)
        if value.ndim > 1
        else value + 0.1 * torch.randn(value.shape, generator=generator)
        for name, value in load_file(path).items()
    }
    save_file(tensors, path)
    policy = parity_flow.load(tmp_path / 'pack')
    model, preprocessor = policy.loaded.model, policy.loaded.preprocessor
    pixels = preprocessor.normalise(torch.rand(2, 56, 56, 3, generator=generator) * 255)
    prompt = policy.loaded.tokenizer.encode('open the top drawer')
    state = torch.randn(8, generator=generator)
    noise = torch.randn(6, 32, generator=generator)
    embedded = model.embed(pixels, prompt)
    read = model.read(embedded.layout)
    output = model.decoder(embedded.hidden, embedded.layout, read=read)
    ours = model.sample(output, embedded.layout, noise, state)

    ids = torch.tensor([[IMAGE] * 32 + list(prompt.ids)])
    found = theirs(tensors).sample_actions(
        state=torch.nn.functional.pad(state, (0, 24))[None],
        input_ids=ids,
        pixel_values=pixels[None],
        pixel_attention_mask=torch.ones(1, 2, dtype=torch.bool),
        attention_mask=torch.ones_like(ids),
        noise=noise[None],
    )
    assert np.abs((ours - found[0]).numpy()).max() < 1e-4
