"""Every tensor of a released checkpoint: its shape, and which of our parameters it fills.

Names and shapes are tabulated in ``docs/how-to/checkpoints.md``. A tensor that is not needed has
no slot and a reason; anything not listed here is unexpected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from specprune_ros.models.config import (
    ConfigError,
    DecoderConfig,
    DiTConfig,
    PolicyConfig,
    VisionConfig,
)

Shape = tuple[int, ...]


def _same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Slot:
    """``view(parameter)`` is filled with ``source(tensor)``; with ``add`` it is added to it.

    Our side fuses what the files keep apart, so a slot is often a slice.
    """

    target: str
    view: Callable[[Tensor], Tensor] = _same
    source: Callable[[Tensor], Tensor] = _same
    add: bool = False


@dataclass(frozen=True)
class Entry:
    """One stored tensor. Without slots it is dropped, for ``reason``."""

    shape: Shape
    slots: tuple[Slot, ...] = ()
    reason: str = ''


Entries = dict[str, Entry]


def _rows(start: int, stop: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x[start:stop]


def _put(
    shape: Shape,
    target: str,
    view: Callable[[Tensor], Tensor] = _same,
    source: Callable[[Tensor], Tensor] = _same,
) -> Entry:
    return Entry(shape, (Slot(target, view, source),))


def _affine(name: str, shape: Shape, target: str, bias: bool = True) -> Entries:
    entries = {f'{name}.weight': _put(shape, f'{target}.weight')}
    if bias:
        entries[f'{name}.bias'] = _put(shape[:1], f'{target}.bias')
    return entries


def _dropped(entries: Mapping[str, Shape], reason: str) -> Entries:
    return {name: Entry(shape, reason=reason) for name, shape in entries.items()}


def drop(entries: Entries, reason: str) -> Entries:
    """The same tensors, none of them used."""
    return {name: Entry(entry.shape, reason=reason) for name, entry in entries.items()}


def llama(prefix: str, config: DecoderConfig, head: str = '', target: str = 'decoder.') -> Entries:
    """Llama or Qwen2 under ``prefix`` (``...model.``); ``head`` is the unused output matrix."""
    d, f, qw = config.width, config.mlp, config.heads * config.head_dim
    kw = config.kv_heads * config.head_dim
    entries = _norm(f'{prefix}norm', config, f'{target}norm')
    if config.vocab:
        entries[f'{prefix}embed_tokens.weight'] = _put(
            (config.vocab, d), f'{target}embed_tokens.weight'
        )
    for i in range(config.depth):
        name, ours = f'{prefix}layers.{i}.', f'{target}layers.{i}.'
        spans = {'q': (0, qw), 'k': (qw, qw + kw), 'v': (qw + kw, qw + 2 * kw)}
        for letter, (start, stop) in spans.items():
            stem, view = f'{name}self_attn.{letter}_proj', _rows(start, stop)
            entries[f'{stem}.weight'] = _put((stop - start, d), f'{ours}attn.qkv.weight', view)
            if config.qkv_bias:
                entries[f'{stem}.bias'] = _put((stop - start,), f'{ours}attn.qkv.bias', view)
        entries |= _affine(f'{name}self_attn.o_proj', (d, qw), f'{ours}attn.out', bias=False)
        for part, start in (('gate', 0), ('up', f)):
            entries[f'{name}mlp.{part}_proj.weight'] = _put(
                (f, d), f'{ours}gate_up.weight', _rows(start, start + f)
            )
        entries |= _affine(f'{name}mlp.down_proj', (d, f), f'{ours}down', bias=False)
        entries |= _norm(f'{name}input_layernorm', config, f'{ours}attn_norm')
        entries |= _norm(f'{name}post_attention_layernorm', config, f'{ours}mlp_norm')
    if head:
        entries |= _dropped({head: (config.vocab, d)}, 'output words: actions do not use them')
    return entries


def _norm(name: str, config: DecoderConfig, target: str) -> Entries:
    """A norm's weight; Gemma's (recognised by its gate) is stored less one."""
    width = config.width
    if config.adaptive:
        return _affine(f'{name}.dense', (3 * width, width), f'{target}.dense')
    gemma = config.activation == 'gelu_tanh'
    source = _one_more if gemma else _same
    return {f'{name}.weight': _put((width,), f'{target}.weight', source=source)}


def _one_more(x: Tensor) -> Tensor:
    return x.float() + 1


def timm_tower(
    prefix: str, config: VisionConfig, target: str, gamma: str, film: int | None = None
) -> Entries:
    """A timm tower; ``gamma`` is LayerScale's name, ``film`` the condition's width."""
    w, p = config.width, config.patch
    image = (w, 3, p, p)
    entries: Entries = {
        f'{prefix}pos_embed': _put((1, config.grid**2, w), f'{target}pos_embed'),
        f'{prefix}patch_embed.proj.weight': _put(
            image, f'{target}patch_embed.proj.weight', lambda x: x.view(image)
        ),
        f'{prefix}patch_embed.proj.bias': _put((w,), f'{target}patch_embed.proj.bias'),
    }
    if config.class_token:
        entries[f'{prefix}cls_token'] = _put((1, 1, w), f'{target}prefix', lambda x: x[:, :1])
    if config.registers:
        entries[f'{prefix}reg_token'] = _put(
            (1, config.registers, w), f'{target}prefix', lambda x: x[:, -config.registers :]
        )
    for i in range(config.depth):
        outer = f'{prefix}blocks.{i}.'
        inner = f'{outer}block.' if film else outer
        block = _timm_block(inner, config, f'{target}blocks.{i}.', gamma)
        if film:
            for part in ('scale', 'shift'):
                block |= _affine(f'{outer}{part}', (w, film), f'{target}blocks.{i}.film.{part}')
        if i >= config.blocks:
            block = drop(block, 'last block: features are taken before it')
        entries |= block
    entries |= _dropped(
        {f'{prefix}norm.weight': (w,), f'{prefix}norm.bias': (w,)},
        'final norm: features are taken before it',
    )
    if not config.class_token:
        entries |= _dropped(_attention_pool(prefix, config), 'pooling head: not used')
    return entries


def _timm_block(name: str, config: VisionConfig, ours: str, gamma: str) -> Entries:
    w, f = config.width, config.mlp
    entries = (
        _affine(f'{name}norm1', (w,), f'{ours}norm1')
        | _affine(f'{name}attn.qkv', (3 * w, w), f'{ours}qkv')
        | _affine(f'{name}attn.proj', (w, w), f'{ours}proj')
        | _affine(f'{name}norm2', (w,), f'{ours}norm2')
        | _affine(f'{name}mlp.fc1', (f, w), f'{ours}fc1')
        | _affine(f'{name}mlp.fc2', (w, f), f'{ours}fc2')
    )
    if config.layer_scale:
        for part in ('ls1', 'ls2'):
            entries[f'{name}{part}.{gamma}'] = _put((w,), f'{ours}{part}.gamma')
    return entries


def _attention_pool(prefix: str, config: VisionConfig) -> dict[str, Shape]:
    w, f, pool = config.width, config.mlp, f'{prefix}attn_pool.'
    shapes: dict[str, Shape] = {f'{pool}latent': (1, 1, w)}
    for name, out, into in (
        ('q', w, w),
        ('kv', 2 * w, w),
        ('proj', w, w),
        ('mlp.fc1', f, w),
        ('mlp.fc2', w, f),
    ):
        shapes[f'{pool}{name}.weight'] = (out, into)
        shapes[f'{pool}{name}.bias'] = (out,)
    shapes[f'{pool}norm.weight'] = shapes[f'{pool}norm.bias'] = (w,)
    return shapes


def clip_tower(prefix: str, config: VisionConfig, target: str) -> Entries:
    """A transformers ``CLIPVisionModel`` (``vision_model.`` names of 4.x)."""
    w, p = config.width, config.patch
    image, e = (w, 3, p, p), f'{prefix}embeddings.'
    prefix_row = f'{target}prefix'
    entries: Entries = {
        # The class row's position is added to the class token, as the model does at run time.
        f'{e}class_embedding': Entry((w,), (Slot(prefix_row, lambda x: x[0, 0], add=True),)),
        f'{e}position_embedding.weight': Entry(
            (config.grid**2 + 1, w),
            (
                Slot(f'{target}pos_embed', lambda x: x[0], lambda t: t[1:]),
                Slot(prefix_row, lambda x: x[0, 0], lambda t: t[0], add=True),
            ),
        ),
        f'{e}patch_embedding.weight': _put(
            image, f'{target}patch_embed.proj.weight', lambda x: x.view(image)
        ),
        **_affine(f'{prefix}pre_layrnorm', (w,), f'{target}pre_norm'),
        **_dropped(
            {f'{prefix}post_layernorm.weight': (w,), f'{prefix}post_layernorm.bias': (w,)},
            'final norm: features are taken before it',
        ),
    }
    for i in range(config.depth):
        block = _transformers_block(f'{prefix}encoder.layers.{i}.', config, f'{target}blocks.{i}.')
        if i >= config.blocks:
            block = drop(block, 'last block: features are taken before it')
        entries |= block
    return entries


def siglip_tower(prefix: str, config: VisionConfig, target: str) -> Entries:
    """A transformers ``SiglipVisionModel`` without its pooling head."""
    w, e = config.width, f'{prefix}embeddings.'
    image = (w, 3, config.patch, config.patch)
    patch = f'{target}patch_embed.proj'
    entries: Entries = {
        f'{e}patch_embedding.weight': _put(image, f'{patch}.weight', lambda x: x.view(image)),
        f'{e}patch_embedding.bias': _put((w,), f'{patch}.bias'),
        f'{e}position_embedding.weight': _put(
            (config.grid**2, w), f'{target}pos_embed', lambda x: x[0]
        ),
        **_affine(f'{prefix}post_layernorm', (w,), f'{target}norm'),
    }
    for i in range(config.depth):
        entries |= _transformers_block(
            f'{prefix}encoder.layers.{i}.', config, f'{target}blocks.{i}.'
        )
    return entries


def _transformers_block(name: str, config: VisionConfig, ours: str) -> Entries:
    w, f = config.width, config.mlp
    block: Entries = {}
    for j, letter in enumerate('qkv'):
        stem, view = f'{name}self_attn.{letter}_proj', _rows(j * w, (j + 1) * w)
        block[f'{stem}.weight'] = _put((w, w), f'{ours}qkv.weight', view)
        block[f'{stem}.bias'] = _put((w,), f'{ours}qkv.bias', view)
    return (
        block
        | _affine(f'{name}self_attn.out_proj', (w, w), f'{ours}proj')
        | _affine(f'{name}layer_norm1', (w,), f'{ours}norm1')
        | _affine(f'{name}layer_norm2', (w,), f'{ours}norm2')
        | _affine(f'{name}mlp.fc1', (f, w), f'{ours}fc1')
        | _affine(f'{name}mlp.fc2', (w, f), f'{ours}fc2')
    )


def projector(names: tuple[str, ...], config: PolicyConfig) -> Entries:
    """The projector's linear layers under the given names."""
    sizes = (config.vision_width, *config.projector, config.decoder.width)
    if len(sizes) != len(names) + 1:
        raise ConfigError(f'projector must name {len(names) - 1} widths, is {config.projector}')
    entries: Entries = {}
    for i, name in enumerate(names):
        entries |= _affine(name, (sizes[i + 1], sizes[i]), f'projector.layers.{i}')
    return entries


def l1_head(prefix: str, config: PolicyConfig) -> Entries:
    """MLP-ResNet names of the OFT action head file, shared by DB-OFT."""
    d, dim, ours = config.decoder.width, config.action_dim, 'action_head.'
    entries = (
        _affine(f'{prefix}layer_norm1', (d * dim,), f'{ours}layer_norm1')
        | _affine(f'{prefix}fc1', (d, d * dim), f'{ours}fc1')
        | _affine(f'{prefix}layer_norm2', (d,), f'{ours}layer_norm2')
        | _affine(f'{prefix}fc2', (dim, d), f'{ours}fc2')
    )
    for i in range(config.head_blocks):
        block, mine = f'{prefix}mlp_resnet_blocks.{i}.ffn.', f'{ours}blocks.{i}.'
        entries |= _affine(f'{block}0', (d,), f'{mine}norm')
        entries |= _affine(f'{block}1', (d, d), f'{mine}linear')
    return entries


def proprio(prefix: str, config: PolicyConfig) -> Entries:
    """The proprioception projector."""
    d = config.decoder.width
    return _affine(f'{prefix}fc1', (d, config.proprio_dim), 'proprio.fc1') | _affine(
        f'{prefix}fc2', (d, d), 'proprio.fc2'
    )


def dit(prefix: str, config: PolicyConfig, sizes: DiTConfig) -> Entries:
    """CogACT's diffusion transformer."""
    w, c, dim, ours = sizes.width, config.decoder.width, config.action_dim, 'action_head.'
    entries = (
        _affine(f'{prefix}x_embedder.linear', (w, dim), f'{ours}x_embedder')
        | _affine(f'{prefix}t_embedder.mlp.0', (w, 256), f'{ours}t_embedder.fc1')
        | _affine(f'{prefix}t_embedder.mlp.2', (w, w), f'{ours}t_embedder.fc2')
        | _affine(f'{prefix}z_embedder.linear', (w, c), f'{ours}z_embedder')
        | _affine(f'{prefix}final_layer.linear', (dim, w), f'{ours}final')
    )
    entries[f'{prefix}z_embedder.uncondition'] = _put((1, c), f'{ours}uncondition')
    entries[f'{prefix}positional_embedding'] = _put(
        (config.chunk + 1, w), f'{ours}positional_embedding'
    )
    entries |= drop(_affine(f'{prefix}history_embedder.linear', (w, dim), ''), 'history: not used')
    for i in range(sizes.depth):
        name, mine = f'{prefix}blocks.{i}.', f'{ours}blocks.{i}.'
        entries |= (
            _affine(f'{name}attn.qkv', (3 * w, w), f'{mine}qkv')
            | _affine(f'{name}attn.proj', (w, w), f'{mine}proj')
            | _affine(f'{name}mlp.fc1', (4 * w, w), f'{mine}fc1')
            | _affine(f'{name}mlp.fc2', (w, 4 * w), f'{mine}fc2')
        )
    return entries


def oft_model(config: PolicyConfig) -> Entries:
    """The 982 tensors of an OpenVLA-OFT index (at full size)."""
    dino, siglip = config.towers
    vision = timm_tower(
        'vision_backbone.featurizer.', dino, 'vision.towers.0.', 'scale_factor'
    ) | timm_tower('vision_backbone.fused_featurizer.', siglip, 'vision.towers.1.', 'scale_factor')
    if config.film:
        vision = drop(vision, 'replaced by the FiLM vision backbone file')
    return (
        vision
        | projector(tuple(f'projector.fc{i}' for i in (1, 2, 3)), config)
        | llama('language_model.model.', config.decoder, 'language_model.lm_head.weight')
    )


def oft_film(config: PolicyConfig) -> Entries:
    """The FiLM vision backbone file, after its LoRA layers are merged."""
    dino, siglip = config.towers
    film = config.decoder.width
    return timm_tower('featurizer.', dino, 'vision.towers.0.', 'scale_factor', film) | timm_tower(
        'fused_featurizer.', siglip, 'vision.towers.1.', 'scale_factor', film
    )


def dexbotic_model(config: PolicyConfig) -> Entries:
    """All tensors of a DB-OFT or DB-CogACT checkpoint."""
    head = 'model.action_head.'
    entries = (
        llama('model.llm.', config.decoder, 'lm_head.weight')
        | clip_tower(
            'model.mm_vision_tower.vision_tower.vision_model.',
            config.towers[0],
            'vision.towers.0.',
        )
        | projector(('model.mm_projector.0', 'model.mm_projector.2'), config)
    )
    if config.dit is not None:
        return entries | dit(f'{head}net.', config, config.dit)
    if config.ddim is not None:
        d, ours = config.decoder.width, 'noisy_action.'
        entries |= l1_head(f'{head}noise_predictor.mlp_resnet.', config)
        entries |= _affine(f'{head}noisy_action_projector.fc1', (d, 1), f'{ours}fc1')
        entries |= _affine(f'{head}noisy_action_projector.fc2', (d, d), f'{ours}fc2')
    else:
        entries |= l1_head(f'{head}model.', config)
        entries[f'{head}action_query'] = _put(
            (1, config.action_tokens, config.decoder.width), 'action_query'
        )
    if config.proprio_dim:
        entries |= proprio(f'{head}proprio_projector.', config)
    return entries


def cogact_model(config: PolicyConfig) -> Entries:
    """All tensors of a CogACT file, its four parts joined by dots."""
    dino, siglip = config.towers
    return (
        timm_tower('vision_backbone.dino_featurizer.', dino, 'vision.towers.0.', 'gamma')
        | timm_tower('vision_backbone.siglip_featurizer.', siglip, 'vision.towers.1.', 'gamma')
        | projector(tuple(f'projector.projector.{i}' for i in (0, 2, 4)), config)
        | llama('llm_backbone.llm.model.', config.decoder, 'llm_backbone.llm.lm_head.weight')
        | dit('action_model.net.', config, config.dit)
    )


def pi0_model(config: PolicyConfig, lead: str = '', tower: str = 'vision_model.') -> Entries:
    """All tensors of pi0 or pi0.5: 777 or 812 at full size, less one where the word table and the
    output matrix are stored as one.

    ``lead``: what stands before every name (``model.`` in folders that lerobot saved). ``tower``:
    the level that newer transformers leave out of the vision tower's names.
    """
    flow = config.flow
    expert, x = flow.expert, 'paligemma_with_expert.'
    w, v = expert.width, f'{x}paligemma.model.'
    entries = (
        siglip_tower(f'{v}vision_tower.{tower}', config.towers[0], 'vision.towers.0.')
        | projector((f'{v}multi_modal_projector.linear',), config)
        | llama(f'{v}language_model.', config.decoder, f'{x}paligemma.lm_head.weight')
        | llama(f'{x}gemma_expert.model.', expert, target='expert.')
        | _affine('action_in_proj', (w, flow.width), 'action_in')
        | _affine('action_out_proj', (flow.width, w), 'action_out')
        | _dropped(
            {f'{x}gemma_expert.lm_head.weight': (config.decoder.vocab, w)},
            'output words: actions do not use them',
        )
    )
    if expert.adaptive:
        entries |= _affine('time_mlp_in', (w, w), 'time_in')
        entries |= _affine('time_mlp_out', (w, w), 'time_out')
    else:
        entries |= _affine('state_proj', (w, flow.width), 'state_in')
        entries |= _affine('action_time_mlp_in', (w, 2 * w), 'time_in')
        entries |= _affine('action_time_mlp_out', (w, w), 'time_out')
    return {lead + name: entry for name, entry in entries.items()}
