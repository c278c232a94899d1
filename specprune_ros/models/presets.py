"""Named policies: two that run on a laptop, and the released sizes."""

from __future__ import annotations

from dataclasses import replace

from tokenizers import Tokenizer

from specprune_ros.models.config import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ActionConfig,
    DDIMConfig,
    DecoderConfig,
    DiTConfig,
    FlowConfig,
    PolicyConfig,
    VisionConfig,
)
from specprune_ros.models.conventions import LIBERO_ACTION
from specprune_ros.models.tokens import word_tokenizer

# The ImageNet statistics as the OFT checkpoints apply them: rounded to bfloat16.
IMAGENET_MEAN_BF16 = (0.484375, 0.455078125, 0.40625)
IMAGENET_STD_BF16 = (0.228515625, 0.2236328125, 0.224609375)

DINOV2_L = VisionConfig(
    name='dinov2-l14-reg4',
    width=1024,
    depth=24,
    heads=16,
    mlp=4096,
    class_token=True,
    registers=4,
    layer_scale=True,
    mean=IMAGENET_MEAN_BF16,
    std=IMAGENET_STD_BF16,
)
SIGLIP_SO400M = VisionConfig(
    name='siglip-so400m14', width=1152, depth=27, heads=16, mlp=4304, mean=HALF, std=HALF
)
SIGLIP_224 = replace(
    SIGLIP_SO400M,
    name='siglip-so400m14-224',
    activation='gelu_tanh',
    skip_last=0,
    final_norm=True,
)
CLIP_L_336 = VisionConfig(
    name='clip-l14-336',
    width=1024,
    depth=24,
    heads=16,
    mlp=4096,
    image_size=336,
    class_token=True,
    pre_norm=True,
    patch_bias=False,
    activation='quick_gelu',
    norm_eps=1e-5,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
LLAMA2_7B = DecoderConfig(width=4096, depth=32, heads=32, mlp=11008, vocab=32064)
QWEN25_7B = DecoderConfig(
    width=3584,
    depth=28,
    heads=28,
    kv_heads=4,
    mlp=18944,
    vocab=152064,
    rope_theta=1e6,
    causal=True,
    qkv_bias=True,
)

GEMMA_2B = DecoderConfig(
    width=2048,
    depth=18,
    heads=8,
    kv_heads=1,
    head_size=256,
    mlp=16384,
    vocab=257152,
    activation='gelu_tanh',
    embed_scale=2048**0.5,
)
GEMMA_300M = replace(GEMMA_2B, width=1024, mlp=4096, vocab=0, embed_scale=1.0)


def expert_of(decoder: DecoderConfig, widths: DecoderConfig, family: str) -> DecoderConfig:
    """An action expert as wide as ``widths`` that reads the keys and values of ``decoder``."""
    return replace(
        decoder,
        width=widths.width,
        mlp=widths.mlp,
        vocab=0,
        head_size=decoder.head_dim,
        embed_scale=1.0,
        adaptive=family == 'pi05',
    )


OPENVLA_OFT_7B = PolicyConfig(
    family='openvla-oft',
    towers=(DINOV2_L, SIGLIP_SO400M),
    decoder=LLAMA2_7B,
    action=LIBERO_ACTION,
)
DB_OFT_7B = PolicyConfig(
    family='db-oft',
    towers=(CLIP_L_336,),
    decoder=QWEN25_7B,
    cameras=('third_person',),
    proprio_dim=0,
    chunk=16,
    control_hz=5.0,
    norm='min_max',
    action=ActionConfig(rotation='euler_xyz'),
    resize='pad_bicubic',
    center_crop=False,
    jpeg=False,
    template='dexbotic',
    stop_id=0,
)
DB_OFT_DIT_7B = replace(DB_OFT_7B, ddim=DDIMConfig())
DB_COGACT_7B = replace(DB_OFT_7B, family='db-cogact', dit=DiTConfig())
COGACT_7B = PolicyConfig(
    family='cogact',
    towers=(
        replace(DINOV2_L, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        SIGLIP_SO400M,
    ),
    decoder=replace(LLAMA2_7B, rms_norm_eps=1e-5, causal=True),
    cameras=('third_person',),
    proprio_dim=0,
    chunk=16,
    control_hz=5.0,
    action=ActionConfig(rotation='euler_xyz'),
    resize='bicubic',
    center_crop=False,
    jpeg=False,
    dit=DiTConfig(),
    template='cogact',
)

# As on LIBERO: two of the three cameras.
PI0_3B = PolicyConfig(
    family='pi0',
    towers=(SIGLIP_224,),
    decoder=GEMMA_2B,
    flow=FlowConfig(expert=expert_of(GEMMA_2B, GEMMA_300M, 'pi0')),
    cameras=('base_0_rgb', 'left_wrist_0_rgb'),
    chunk=50,
    norm='min_max',
    action=replace(LIBERO_ACTION, gripper_sense='one_is_closed', gripper_range=(-1.0, 1.0)),
    resize='pad_pillow',
    center_crop=False,
    jpeg=False,
    template='pi0',
    max_prompt=48,
    stop_id=0,
)
PI05_3B = replace(
    PI0_3B,
    family='pi05',
    flow=FlowConfig(expert=expert_of(GEMMA_2B, GEMMA_300M, 'pi05'), state='prompt'),
    template='pi05',
    max_prompt=200,
)

# The same image grid and row layout as OFT, small enough for two CPU cores.
TINY = PolicyConfig(
    family='openvla-oft',
    towers=(
        replace(DINOV2_L, name='tiny-dino', width=64, depth=3, heads=2, mlp=128),
        replace(SIGLIP_SO400M, name='tiny-siglip', width=64, depth=3, heads=2, mlp=128),
    ),
    decoder=DecoderConfig(width=128, depth=8, heads=2, mlp=256, vocab=512),
    action=LIBERO_ACTION,
    jpeg=False,
)
OFT_MEDIUM = PolicyConfig(
    family='openvla-oft',
    towers=(
        replace(DINOV2_L, name='medium-dino', width=256, depth=6, heads=4, mlp=1024),
        replace(SIGLIP_SO400M, name='medium-siglip', width=288, depth=7, heads=4, mlp=1076),
    ),
    decoder=DecoderConfig(width=512, depth=32, heads=8, mlp=1376, vocab=512),
    jpeg=False,
)

_PI0_TINY = replace(GEMMA_2B, width=64, depth=8, head_size=16, mlp=128, vocab=512, embed_scale=8.0)
PI0_TINY = replace(
    PI0_3B,
    towers=(replace(SIGLIP_224, name='tiny-siglip', width=64, depth=2, heads=2, mlp=128),),
    decoder=_PI0_TINY,
    flow=FlowConfig(expert=expert_of(_PI0_TINY, replace(GEMMA_300M, width=32, mlp=64), 'pi0')),
    chunk=10,
)
_PI0_MEDIUM = replace(
    GEMMA_2B, width=512, depth=18, head_size=64, mlp=4096, vocab=512, embed_scale=512**0.5
)
PI0_MEDIUM = replace(
    PI0_3B,
    towers=(replace(SIGLIP_224, name='medium-siglip', width=288, depth=7, heads=4, mlp=1076),),
    decoder=_PI0_MEDIUM,
    flow=FlowConfig(
        expert=expert_of(_PI0_MEDIUM, replace(GEMMA_300M, width=256, mlp=1024), 'pi0')
    ),
)

PRESETS = {
    'tiny': TINY,
    'oft-medium': OFT_MEDIUM,
    'openvla-oft-7b': OPENVLA_OFT_7B,
    'db-oft-7b': DB_OFT_7B,
    'db-oft-dit-7b': DB_OFT_DIT_7B,
    'db-cogact-7b': DB_COGACT_7B,
    'cogact-7b': COGACT_7B,
    'pi0-tiny': PI0_TINY,
    'pi0-medium': PI0_MEDIUM,
    'pi0-3b': PI0_3B,
    'pi05-3b': PI05_3B,
}

# 20 words: with the word tokenizer the OFT layout then has the 605 rows of the paper's example.
BENCH_INSTRUCTION = (
    'pick up the black bowl between the plate and the ramekin and place it on top of the small '
    'white plate'
)
WORDS = (
    BENCH_INSTRUCTION,
    'turn off stove open close drawer cabinet door put take move push pull lift lower above below '
    'into onto from left right front back middle bottom first second',
    'red green blue yellow orange purple grey gray brown pink cube block box ball cup mug bottle '
    'can basket tray table spoon knife fork pot pan lid sponge towel button switch handle',
    'a an to of with then both all it is at near next beside behind grasp release reach stack '
    'insert pour wipe press rotate hold stop home',
)


def preset(name: str) -> PolicyConfig:
    """A named configuration. Raises ``ValueError`` listing the names."""
    if name not in PRESETS:
        raise ValueError(f'no model preset {name!r}; there are {", ".join(PRESETS)}')
    return PRESETS[name]


def default_tokenizer() -> Tokenizer:
    """The word tokenizer for models without one of their own: a few hundred manipulation words."""
    return word_tokenizer(WORDS)
