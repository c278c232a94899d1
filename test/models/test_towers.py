"""The vision towers against transformers, block by block, and against their own configuration."""

import pytest
import torch
from toy_models import relative
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from specprune_ros.models.config import ConfigError, VisionConfig
from specprune_ros.models.vision import VisionBackbone, VisionTower

BOUND = 1e-5
SIZES = {
    'hidden_size': 48,
    'num_hidden_layers': 4,
    'num_attention_heads': 3,
    'image_size': 28,
    'patch_size': 7,
}


def randomise(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval().requires_grad_(False)


def tower(**options):
    config = VisionConfig('t', 48, 4, 3, 96, patch=7, image_size=28, **options)
    return VisionTower(config).eval().requires_grad_(False)


def copy(ours, names):
    """``names``: our parameter or layer to theirs."""
    with torch.no_grad():
        for mine, theirs in names:
            if isinstance(mine, torch.nn.Module):
                mine.weight.copy_(theirs.weight.reshape(mine.weight.shape))
                if mine.bias is not None:
                    mine.bias.copy_(theirs.bias)
            else:
                mine.copy_(theirs.reshape(mine.shape))


def copy_qkv(mine, parts):
    with torch.no_grad():
        mine.weight.copy_(torch.cat([part.weight for part in parts]))
        mine.bias.copy_(torch.cat([part.bias for part in parts]))


def dino():
    theirs = randomise(
        Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, num_register_tokens=4)
        )
    )
    ours = tower(class_token=True, registers=4, layer_scale=True)
    e = theirs.embeddings
    first = e.cls_token + e.position_embeddings[:, :1]
    copy(
        ours,
        [
            (ours.patch_embed.proj, e.patch_embeddings.projection),
            (ours.pos_embed, e.position_embeddings[:, 1:]),
            (ours.prefix, torch.cat((first, e.register_tokens), 1)),
        ],
    )
    for mine, block in zip(ours.blocks, theirs.encoder.layer, strict=False):
        attention = block.attention
        copy_qkv(mine.qkv, [attention.q_proj, attention.k_proj, attention.v_proj])
        copy(
            ours,
            [
                (mine.norm1, block.norm1),
                (mine.norm2, block.norm2),
                (mine.proj, attention.o_proj),
                (mine.ls1.gamma, block.layer_scale1.lambda1),
                (mine.ls2.gamma, block.layer_scale2.lambda1),
                (mine.fc1, block.mlp.fc1),
                (mine.fc2, block.mlp.fc2),
            ],
        )
    return ours, theirs, 5


def plain_blocks(ours, theirs):
    for mine, block in zip(ours.blocks, theirs.encoder.layers, strict=False):
        attention = block.self_attn
        copy_qkv(mine.qkv, [attention.q_proj, attention.k_proj, attention.v_proj])
        copy(
            ours,
            [
                (mine.norm1, block.layer_norm1),
                (mine.norm2, block.layer_norm2),
                (mine.proj, attention.out_proj),
                (mine.fc1, block.mlp.fc1),
                (mine.fc2, block.mlp.fc2),
            ],
        )


def siglip():
    config = SiglipVisionConfig(**SIZES, intermediate_size=96, hidden_act='gelu')
    theirs = randomise(SiglipVisionModel(config))
    ours = tower()
    e = theirs.embeddings
    copy(
        ours,
        [
            (ours.patch_embed.proj, e.patch_embedding),
            (ours.pos_embed, e.position_embedding.weight),
        ],
    )
    plain_blocks(ours, theirs)
    return ours, theirs, 0


def clip():
    config = CLIPVisionConfig(**SIZES, intermediate_size=96)
    theirs = randomise(CLIPVisionModel(config))
    ours = tower(
        class_token=True,
        pre_norm=True,
        patch_bias=False,
        activation='quick_gelu',
        norm_eps=1e-5,
    )
    e = theirs.embeddings
    position = e.position_embedding.weight
    copy(
        ours,
        [
            (ours.patch_embed.proj, e.patch_embedding),
            (ours.pos_embed, position[1:]),
            (ours.prefix, e.class_embedding + position[0]),
            (ours.pre_norm, theirs.pre_layrnorm),
        ],
    )
    plain_blocks(ours, theirs)
    return ours, theirs, 1


@pytest.mark.parametrize('make', [dino, siglip, clip])
def test_every_block_equals_transformers(make):
    ours, theirs, prefix = make()
    pixels = torch.randn(2, 3, 28, 28)
    if make is siglip:  # (transformers leaves LayerNorm eps 1e-6 for SigLIP and DINOv2)
        assert theirs.config.layer_norm_eps == ours.config.norm_eps == 1e-6
    states = theirs(pixels, output_hidden_states=True).hidden_states
    seen = []
    for block in ours.blocks:
        block.register_forward_hook(lambda _m, _i, out: seen.append(out))
    features = ours(pixels)
    assert len(seen) == 3  # of 4: the last block is not built
    for mine, expected in zip(seen, states[1:], strict=False):
        assert relative(mine, expected) < BOUND
    # What comes out is the second-to-last block without the final norm, without prefix rows.
    assert relative(features, states[-2][:, prefix:]) < BOUND
    assert features.shape == (2, 16, 48)


def test_patches_are_in_row_major_order():
    ours = tower()
    pixels = torch.zeros(1, 3, 28, 28)
    pixels[:, :, 7:14, 14:21] = 1  # row 1, column 2 of a 4 x 4 grid
    rows = ours.patch_embed(pixels) - ours.patch_embed(torch.zeros(1, 3, 28, 28))
    assert rows.abs().sum(-1).nonzero()[:, 1].tolist() == [6]


def test_features_are_joined_in_tower_order_and_each_sees_its_own_channels():
    towers = (
        VisionConfig('a', 16, 2, 2, 8, patch=7, image_size=28),
        VisionConfig('b', 24, 2, 2, 8, patch=7, image_size=28),
    )
    backbone = VisionBackbone(towers).requires_grad_(False)
    pixels = torch.randn(1, 6, 28, 28)
    out = backbone(pixels)
    assert torch.equal(out[..., :16], backbone.towers[0](pixels[:, :3]))
    assert torch.equal(out[..., 16:], backbone.towers[1](pixels[:, 3:]))
    with pytest.raises(ValueError, match='must have 6 channels'):
        backbone(pixels[:, :3])


def test_film_modulates_between_attention_and_mlp():
    config = VisionConfig('f', 16, 2, 2, 8, patch=7, image_size=28)
    plain, film = VisionTower(config), VisionTower(config, film=10)
    for ours in (plain, film):
        ours.requires_grad_(False)
    film.load_state_dict(plain.state_dict(), strict=False)
    block = film.blocks[0]
    for layer in (block.film.scale, block.film.shift):
        layer.weight.normal_()
        layer.bias.normal_()
    x, e = torch.randn(1, 16, 16), torch.randn(1, 10)
    b = plain.blocks[0]
    fc2, b.fc2 = b.fc2, torch.nn.Linear(8, 16).requires_grad_(False)
    b.fc2.weight.zero_()
    b.fc2.bias.zero_()
    attended = b(x)  # the attention residual alone
    b.fc2 = fc2
    modulated = attended * (1 + block.film.scale(e)) + block.film.shift(e)
    mlp = b.fc2(torch.nn.functional.gelu(b.fc1(b.norm2(modulated))))
    assert relative(block(x, e), modulated + mlp) < BOUND


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'heads': 5}, 'multiple of heads'),
        ({'image_size': 30}, 'multiple of patch'),
        ({'skip_last': 4}, 'skip_last 4 must be 0..3'),
        ({'activation': 'relu'}, 'activation: is "relu"; it should be .gelu., .quick_gelu'),
        ({'depth': 0}, 'depth: is 0; it should be greater than'),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    sizes = {'width': 48, 'depth': 4, 'heads': 3, 'mlp': 80, 'patch': 7, 'image_size': 28}
    with pytest.raises(ConfigError, match=message):
        VisionConfig('t', **{**sizes, **options})
