"""Writes checkpoints in the released layouts, tiny, and computes what they should give.

Independent of the loaders: names are spelled out here or come from transformers' own modules, and
the reference actions are computed from the written tensors by transformers and plain functions.
``trap`` makes a reference fall into one known mistake.
"""

import json
import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaModel,
    Qwen2Config,
    Qwen2Model,
)

from specprune_ros.models.tokens import word_tokenizer

TIMM = ['vit_large_patch14_reg4_dinov2.lvd142m', 'vit_so400m_patch14_siglip_224']
TVF = [
    {'mean': [0.484375, 0.455078125, 0.40625], 'std': [0.228515625, 0.2236328125, 0.224609375]},
    {'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5]},
]
MEANS = {
    'means': [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
    'stds': [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
}
WORDS = ['pick up the red blue cube and put it on plate']
PATCH, SIZE, GRID = 56, 224, 4  # sixteen patches an image
LLM = {'hidden_size': 64, 'intermediate_size': 96, 'num_hidden_layers': 3}


@dataclass
class Written:
    """A folder, the tensors in it, and sizes the reference needs."""

    folder: object
    tensors: dict
    depths: tuple = (3, 4)
    film: bool = False
    extra: dict = field(default_factory=dict)


def noise(generator, *shape, scale=0.1):
    return torch.randn(*shape, generator=generator) * scale


def linear(out, name, rows, columns, g, bias=True):
    out[f'{name}.weight'] = noise(g, rows, columns, scale=columns**-0.5)
    if bias:
        out[f'{name}.bias'] = noise(g, rows)


def norm(out, name, width, g):
    out[f'{name}.weight'] = 1 + noise(g, width)
    out[f'{name}.bias'] = noise(g, width)


def timm_vit(prefix, width, depth, mlp, g, registers=0, gamma=None, inner=''):
    """A timm vision transformer's state dict, blocks beyond the one read included."""
    t = {f'{prefix}pos_embed': noise(g, 1, GRID**2, width)}
    t[f'{prefix}patch_embed.proj.weight'] = noise(g, width, 3, PATCH, PATCH, scale=0.02)
    t[f'{prefix}patch_embed.proj.bias'] = noise(g, width)
    if registers:
        t[f'{prefix}cls_token'] = noise(g, 1, 1, width)
        t[f'{prefix}reg_token'] = noise(g, 1, registers, width)
    for i in range(depth):
        b = f'{prefix}blocks.{i}.{inner}'
        norm(t, f'{b}norm1', width, g)
        linear(t, f'{b}attn.qkv', 3 * width, width, g)
        linear(t, f'{b}attn.proj', width, width, g)
        norm(t, f'{b}norm2', width, g)
        linear(t, f'{b}mlp.fc1', mlp, width, g)
        linear(t, f'{b}mlp.fc2', width, mlp, g)
        if gamma:
            t[f'{b}ls1.{gamma}'] = 1 + noise(g, width)
            t[f'{b}ls2.{gamma}'] = 1 + noise(g, width)
    norm(t, f'{prefix}norm', width, g)
    if not registers:
        a = f'{prefix}attn_pool.'
        t[f'{a}latent'] = noise(g, 1, 1, width)
        linear(t, f'{a}q', width, width, g)
        linear(t, f'{a}kv', 2 * width, width, g)
        linear(t, f'{a}proj', width, width, g)
        norm(t, f'{a}norm', width, g)
        linear(t, f'{a}mlp.fc1', mlp, width, g)
        linear(t, f'{a}mlp.fc2', width, mlp, g)
    return t


def llm_tensors(prefix, model, g):
    """A transformers language model's names, with random values that make norms' eps matter."""
    t = {}
    for name, value in model.state_dict().items():
        if name == 'embed_tokens.weight':
            t[prefix + name] = noise(g, *value.shape, scale=0.01)
        elif 'norm' in name:
            t[prefix + name] = 1 + noise(g, *value.shape)
        elif name.endswith('bias'):
            t[prefix + name] = noise(g, *value.shape)
        else:
            t[prefix + name] = noise(g, *value.shape, scale=value.shape[1] ** -0.5)
    return t


def head_tensors(prefix, width, dim, g):
    t = {}
    norm(t, f'{prefix}layer_norm1', width * dim, g)
    linear(t, f'{prefix}fc1', width, width * dim, g)
    for i in range(2):
        norm(t, f'{prefix}mlp_resnet_blocks.{i}.ffn.0', width, g)
        linear(t, f'{prefix}mlp_resnet_blocks.{i}.ffn.1', width, width, g)
    norm(t, f'{prefix}layer_norm2', width, g)
    linear(t, f'{prefix}fc2', dim, width, g)
    return t


def cast(tensors, dtype):
    return {name: value.to(dtype) for name, value in tensors.items()}


def write_shards(folder, tensors, count):
    """Shards and index as the Hub has them."""
    names = list(tensors)
    step = math.ceil(len(names) / count)
    weight_map = {}
    for i in range(count):
        part = names[i * step : (i + 1) * step]
        file = f'model-{i + 1:05d}-of-{count:05d}.safetensors'
        save_file({name: tensors[name].contiguous() for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    total = sum(v.numel() * v.element_size() for v in tensors.values())
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))


def statistics(dim, proprio, key='libero_spatial_no_noops'):
    low, high = np.linspace(-1, -0.4, dim), np.linspace(0.5, 1.2, dim)
    entry = {
        'action': {
            'q01': low.tolist(),
            'q99': high.tolist(),
            'min': (low - 1).tolist(),
            'max': (high + 1).tolist(),
            'mask': [True] * (dim - 1) + [dim == 14],
        },
        'num_transitions': 10,
        'num_trajectories': 1,
    }
    if proprio:
        low, high = np.linspace(-0.5, 0, proprio), np.linspace(0.5, 2, proprio)
        entry['proprio'] = {
            'q01': low.tolist(),
            'q99': high.tolist(),
            'min': low.tolist(),
            'max': high.tolist(),
        }
    return {key: entry}


def write_oft(
    folder,
    seed=0,
    film=False,
    dim=7,
    proprio=8,
    dtype=torch.bfloat16,
    shards=3,
    llm=None,
    vocab=64,
    key=None,
):
    """An OpenVLA-OFT folder; with ``film``, a backbone file with unmerged LoRA as OFT+ has it."""
    folder.mkdir(exist_ok=True)
    g = torch.Generator().manual_seed(seed)
    llm = {**LLM, 'num_attention_heads': 4, **(llm or {})}
    d = llm['hidden_size']
    model = {}
    for prefix, width, depth, mlp, registers in (
        ('vision_backbone.featurizer.', 32, 3, 80, 4),
        ('vision_backbone.fused_featurizer.', 48, 4, 72, 0),
    ):
        gamma = 'scale_factor' if registers else None
        model |= timm_vit(prefix, width, depth, mlp, g, registers, gamma)
    for i, (rows, columns) in enumerate(((320, 80), (d, 320), (d, d))):
        linear(model, f'projector.fc{i + 1}', rows, columns, g)
    llama = LlamaModel(LlamaConfig(**llm, vocab_size=vocab))
    model |= llm_tensors('language_model.model.', llama, g)
    model['language_model.lm_head.weight'] = noise(g, vocab, d)
    model = cast(model, dtype)
    write_shards(folder, model, shards)
    head = cast(head_tensors('model.', d, dim, g), dtype)
    torch.save(
        {f'module.{n}': v for n, v in head.items()}, folder / 'action_head--150000_checkpoint.pt'
    )
    state = {}
    if proprio:
        linear(state, 'fc1', d, proprio, g)
        linear(state, 'fc2', d, d, g)
        torch.save(
            {f'module.{n}': v for n, v in state.items()},
            folder / 'proprio_projector--150000_checkpoint.pt',
        )
    tensors = model | {f'head.{n}': v for n, v in head.items()}
    tensors |= {f'proprio.{n}': v for n, v in state.items()}
    if film:
        tensors |= write_film(folder, d, g, dtype)
    text = {'model_type': 'llama', 'vocab_size': vocab, 'torch_dtype': 'bfloat16', **llm}
    config = {
        'model_type': 'openvla',
        'arch_specifier': 'no-align+fused-gelu-mlp',
        'image_resize_strategy': 'resize-naive',
        'use_fused_vision_backbone': True,
        'timm_model_ids': TIMM,
        'image_sizes': [224, 224],
        'text_config': text,
        'norm_stats': {'bridge_orig': {}},
        'auto_map': {'AutoConfig': 'evil.Config'},
    }
    key = key or {14: 'aloha_fold', 7: 'libero_spatial_no_noops'}[dim]
    write_json(folder, 'config.json', config)
    write_json(folder, 'dataset_statistics.json', statistics(dim, proprio, key))
    write_json(folder, 'preprocessor_config.json', {**MEANS, 'tvf_normalize_params': TVF})
    word_tokenizer(WORDS).save(str(folder / 'tokenizer.json'))
    return Written(folder, tensors, film=film)


def write_film(folder, condition, g, dtype):
    """``vision_backbone--*.pt``; returns the merged tensors under ``film.`` names."""
    stored, merged = {}, {}
    for name, width, depth, mlp, registers in (
        ('featurizer.', 32, 3, 80, 4),
        ('fused_featurizer.', 48, 4, 72, 0),
    ):
        gamma = 'scale_factor' if registers else None
        tower = timm_vit(name, width, depth, mlp, g, registers, gamma, inner='block.')
        for i in range(depth):
            for part in ('scale', 'shift'):
                linear(tower, f'{name}blocks.{i}.{part}', width, condition, g)
        tower = cast(tower, dtype)
        for key, value in tower.items():
            wrapped = key.endswith('.weight') and (
                '.attn.' in key or '.mlp.' in key or 'patch_embed' in key
            )
            stem = f'module.vision_backbone.{key.rsplit(".", 1)[0]}'
            if not wrapped:
                lora = key.endswith('.bias') and f'{key[:-5]}.weight' in tower
                lora = lora and ('.attn.' in key or '.mlp.' in key or 'patch_embed' in key)
                place = f'{stem}.base_layer.bias' if lora else f'module.vision_backbone.{key}'
                stored[place] = merged[key] = value
                continue
            rank = 32
            down = noise(g, rank, *value.shape[1:], scale=0.05).to(dtype)
            up = noise(g, value.shape[0], rank, *([1] * (value.ndim - 2)), scale=0.05).to(dtype)
            stored[f'{stem}.base_layer.weight'] = value
            stored[f'{stem}.lora_A.default.weight'] = down
            stored[f'{stem}.lora_B.default.weight'] = up
            delta = 0.5 * up.flatten(1).float() @ down.flatten(1).float()
            merged[key] = value.float() + delta.reshape(value.shape)
    torch.save(stored, folder / 'vision_backbone--150000_checkpoint.pt')
    return {f'film.{name}': value for name, value in merged.items()}


def write_db_oft(folder, seed=0, chunk=4, proprio=0, dtype=torch.bfloat16):
    """A DB-OFT folder: CLIP tower, Qwen2 with two key/value heads, head and queries inside. The
    golden packs have the DiT head and DB-CogACT.
    """
    folder.mkdir(exist_ok=True)
    g = torch.Generator().manual_seed(seed)
    llm = {**LLM, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'vocab_size': 64}
    llm |= {'rms_norm_eps': 1e-6, 'rope_theta': 1e6}
    d = llm['hidden_size']
    t = llm_tensors('model.llm.', qwen2(llm), g)
    clip = CLIPVisionModel(clip_config())
    for name, value in clip.state_dict().items():
        scale = 0.02 if 'patch_embedding' in name else 0.15
        value = (1 if 'norm' in name and 'weight' in name else 0) + noise(
            g, *value.shape, scale=scale
        )
        t[f'model.mm_vision_tower.vision_tower.vision_model.{name}'] = value
    linear(t, 'model.mm_projector.0', d, 32, g)
    linear(t, 'model.mm_projector.2', d, d, g)
    t |= head_tensors('model.action_head.model.', d, 7, g)
    t['model.action_head.action_query'] = noise(g, 1, chunk * 7, d)
    if proprio:
        linear(t, 'model.action_head.proprio_projector.fc1', d, proprio, g)
        linear(t, 'model.action_head.proprio_projector.fc2', d, d, g)
    t['lm_head.weight'] = noise(g, 64, d)
    t = cast(t, dtype)
    write_shards(folder, t, 2)
    config = {
        'model_type': 'dexbotic_oft',
        'architectures': ['OFTForCausalLM'],
        'llm_config': 'Qwen/Qwen2.5-7B',
        **llm,
        'rope_scaling': None,
        'use_sliding_window': False,
        'sliding_window': 4096,
        'mm_vision_tower': 'openai/clip-vit-large-patch14-336',
        'mm_projector_type': 'mlp2x_gelu',
        'chat_template': 'dexbotic',
        'action_model_type': 'Linear',
        'mm_hidden_size': 32,
        'action_dim': 7,
        'chunk_size': chunk,
        'use_proprio': bool(proprio),
        'proprio_dim': proprio,
    }
    write_json(folder, 'config.json', config)
    bounds = {'min': [-0.1] * 6 + [0.0], 'max': [0.3] * 6 + [1.0]}
    write_json(folder, 'norm_stats.json', {'norm_stats': {'default': bounds}})
    word_tokenizer(WORDS).save(str(folder / 'tokenizer.json'))
    return Written(folder, t)


def clip_config():
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=16,
        image_size=SIZE,
        patch_size=PATCH,
        attn_implementation='eager',
    )


def qwen2(llm):
    sizes = {k: v for k, v in llm.items() if k != 'rope_theta'}
    return Qwen2Model(
        Qwen2Config(**sizes, rope_parameters={'rope_theta': 1e6}, attn_implementation='eager')
    )


def write_cogact(folder, seed=0, dtype=torch.float32):
    """A CogACT folder: one ``.pt`` with four parts; Llama heads are 128 wide as in the 7B."""
    (folder / 'checkpoints').mkdir(parents=True, exist_ok=True)
    g = torch.Generator().manual_seed(seed)
    d = 256
    vision = timm_vit('dino_featurizer.', 32, 3, 80, g, 4, 'gamma')
    vision |= timm_vit('siglip_featurizer.', 48, 4, 72, g)
    projector = {}
    for i, (rows, columns) in zip((0, 2, 4), ((320, 80), (d, 320), (d, d)), strict=True):
        linear(projector, f'projector.{i}', rows, columns, g)
    llama = LlamaModel(
        LlamaConfig(**{**LLM, 'hidden_size': d}, num_attention_heads=2, vocab_size=64)
    )
    llm = llm_tensors('llm.model.', llama, g)
    llm['llm.lm_head.weight'] = noise(g, 64, d)
    w, net = 64, {}
    linear(net, 'net.x_embedder.linear', w, 7, g)
    linear(net, 'net.history_embedder.linear', w, 7, g)
    linear(net, 'net.t_embedder.mlp.0', w, 256, g)
    linear(net, 'net.t_embedder.mlp.2', w, w, g)
    linear(net, 'net.z_embedder.linear', w, d, g)
    net['net.z_embedder.uncondition'] = noise(g, 1, d, scale=1)
    net['net.positional_embedding'] = noise(g, 17, w, scale=1)
    for i in range(2):
        linear(net, f'net.blocks.{i}.attn.qkv', 3 * w, w, g)
        linear(net, f'net.blocks.{i}.attn.proj', w, w, g)
        linear(net, f'net.blocks.{i}.mlp.fc1', 4 * w, w, g)
        linear(net, f'net.blocks.{i}.mlp.fc2', w, 4 * w, g)
    linear(net, 'net.final_layer.linear', 7, w, g)
    parts = {
        'vision_backbone': vision,
        'projector': projector,
        'llm_backbone': llm,
        'action_model': net,
    }
    parts = {name: cast(part, dtype) for name, part in parts.items()}
    torch.save(
        {'model': {**parts, 'ema_diffusion': {'x': torch.zeros(1)}}},
        folder / 'checkpoints' / 'CogACT-Tiny.pt',
    )
    write_json(folder, 'config.json', {'vla': {'base_vlm': 'prism-dinosiglip-224px+7b'}})
    write_json(folder, 'dataset_statistics.json', statistics(7, 0, 'bridge_orig'))
    word_tokenizer(WORDS).save(str(folder / 'tokenizer.json'))
    flat = {f'{part}.{n}': v for part, values in parts.items() for n, v in values.items()}
    return Written(folder, flat)


def write_json(folder, name, data):
    (folder / name).write_text(json.dumps(data))


# --- what the written weights should give ---


def weight(tensors, name):
    return tensors[name].float()


def apply(tensors, name, x):
    bias = tensors.get(f'{name}.bias')
    return F.linear(x, weight(tensors, f'{name}.weight'), None if bias is None else bias.float())


def layer_norm(tensors, name, x, eps):
    return F.layer_norm(
        x, x.shape[-1:], weight(tensors, f'{name}.weight'), weight(tensors, f'{name}.bias'), eps
    )


def attention(qkv, heads):
    n, length, width = qkv.shape
    q, k, v = qkv.view(n, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(n, length, -1)


def vit_features(t, prefix, depth, x, gamma=None, condition=None, heads=16):
    """Output of block ``depth - 2`` without the final norm and prefix rows."""
    kernel = weight(t, f'{prefix}patch_embed.proj.weight')
    x = F.conv2d(x, kernel, weight(t, f'{prefix}patch_embed.proj.bias'), stride=PATCH)
    x = x.flatten(2).transpose(1, 2) + weight(t, f'{prefix}pos_embed')
    first = 0
    if f'{prefix}cls_token' in t:
        tokens = [
            weight(t, f'{prefix}{n}').expand(len(x), -1, -1) for n in ('cls_token', 'reg_token')
        ]
        first = 1 + tokens[1].shape[1]
        x = torch.cat((*tokens, x), 1)
    for i in range(depth - 1):
        outer = f'{prefix}blocks.{i}.'
        b = f'{outer}block.' if condition is not None else outer
        ls = [weight(t, f'{b}ls{j}.{gamma}') if gamma else 1.0 for j in (1, 2)]
        h = attention(apply(t, f'{b}attn.qkv', layer_norm(t, f'{b}norm1', x, 1e-6)), heads)
        x = x + ls[0] * apply(t, f'{b}attn.proj', h)
        if condition is not None:
            scale, shift = (
                apply(t, f'{outer}{p}', condition)[:, None] for p in ('scale', 'shift')
            )
            x = x * (1 + scale) + shift
        h = F.gelu(apply(t, f'{b}mlp.fc1', layer_norm(t, f'{b}norm2', x, 1e-6)))
        x = x + ls[1] * apply(t, f'{b}mlp.fc2', h)
    return x[:, first:]


def run_llm(t, prefix, model, rows, causal):
    state = {n: weight(t, prefix + n) for n in model.state_dict()}
    model.load_state_dict(state)
    model.eval()
    length = rows.shape[1]
    mask = torch.zeros(1, 1, length, length)
    if causal:
        mask = mask.masked_fill(torch.ones(length, length).triu(1).bool(), float('-inf'))
    with torch.no_grad():
        return model(inputs_embeds=rows, attention_mask=mask).last_hidden_state


def head_actions(t, prefix, rows, dim, relu=True):
    x = rows.reshape(-1, dim * rows.shape[-1])
    x = apply(t, f'{prefix}fc1', layer_norm(t, f'{prefix}layer_norm1', x, 1e-5)).relu()
    for i in range(2):
        b = f'{prefix}mlp_resnet_blocks.{i}.ffn.'
        x = x + apply(t, f'{b}1', layer_norm(t, f'{b}0', x, 1e-5)).relu()
    return apply(t, f'{prefix}fc2', layer_norm(t, f'{prefix}layer_norm2', x, 1e-5))


def mlp(t, names, x):
    for i, name in enumerate(names):
        x = apply(t, name, x if i == 0 else F.gelu(x))
    return x


def normal(images, means, stds):
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return [
        (x - torch.tensor(m)[:, None, None]) / torch.tensor(s)[:, None, None]
        for m, s in zip(means, stds, strict=True)
    ]


def oft_actions(written, ids, images, proprio, chunk, dim, trap=None):
    """Normalised actions of OpenVLA-OFT. ``images`` are 224 x 224, already cropped."""
    t = written.tensors
    table = weight(t, 'language_model.model.embed_tokens.weight')
    means, stds = [p['mean'] for p in TVF], [p['std'] for p in TVF]
    if trap == 'unrounded means':
        means, stds = MEANS['means'], MEANS['stds']
    views = normal(images, means, stds)
    condition = None
    if written.film:
        condition = table[[*ids, 2]].mean(0)[None].expand(len(images), -1)
    where = 'film.' if written.film else 'vision_backbone.'
    features = [
        vit_features(t, f'{where}featurizer.', 3, views[0], 'scale_factor', condition),
        vit_features(t, f'{where}fused_featurizer.', 4, views[1], None, condition),
    ]
    if trap == 'tower order':
        features.reverse()
    vision = mlp(t, [f'projector.fc{i}' for i in (1, 2, 3)], torch.cat(features, -1))
    rows = [table[ids[:1]], vision.flatten(0, 1)]
    if proprio is not None:
        rows.append(mlp(t, ['proprio.fc1', 'proprio.fc2'], proprio[None]))
    zeros = torch.zeros(chunk * dim, table.shape[1])
    if trap == 'non-zero placeholders':
        zeros = table[[1]].expand(chunk * dim, -1)
    rows = torch.cat((*rows, table[ids[1:]], zeros, table[[2]]))[None]
    vocab, width = table.shape
    depth = 1 + max(int(n.split('.')[3]) for n in t if n.startswith('language_model.model.layers'))
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=t['language_model.model.layers.0.mlp.up_proj.weight'].shape[0],
        num_hidden_layers=depth,
        num_attention_heads=4,
        vocab_size=vocab,
        rms_norm_eps=1e-5 if trap == 'eps 1e-5' else 1e-6,
        attn_implementation='eager',
    )
    out = run_llm(t, 'language_model.model.', LlamaModel(config), rows, trap == 'causal')
    shift = {'window late': 1, 'window early': -1}.get(trap, 0)
    end = out.shape[1]
    window = out[0, end - chunk * dim - 2 + shift : end - 2 + shift]
    return head_actions(t, 'head.model.', window, dim)


def db_oft_actions(written, before, after, images, proprio, chunk, trap=None):
    """Normalised actions of DB-OFT; the text pieces left and right of the images are ids."""
    t = written.tensors
    table = weight(t, 'model.llm.embed_tokens.weight')
    mean = [[0.48145466, 0.4578275, 0.40821073]]
    std = [[0.26862954, 0.26130258, 0.27577711]]
    clip = CLIPVisionModel(clip_config())
    name = 'model.mm_vision_tower.vision_tower.vision_model.'
    clip.load_state_dict({n: weight(t, name + n) for n in clip.state_dict()})
    with torch.no_grad():
        states = clip.eval()(normal(images, mean, std)[0], output_hidden_states=True)
    features = states.hidden_states[-1 if trap == 'last block' else -2][:, 1:]
    vision = mlp(t, ['model.mm_projector.0', 'model.mm_projector.2'], features)
    rows = [table[before], vision.flatten(0, 1), table[after]]
    if proprio is not None:
        p = 'model.action_head.proprio_projector.'
        rows.append(mlp(t, [f'{p}fc1', f'{p}fc2'], proprio[None]))
    rows = torch.cat((*rows, weight(t, 'model.action_head.action_query')[0]))[None]
    llm = {**LLM, 'num_attention_heads': 4, 'num_key_value_heads': 2, 'vocab_size': 64}
    model = qwen2({**llm, 'rms_norm_eps': 1e-6})
    out = run_llm(t, 'model.llm.', model, rows, trap != 'bidirectional')[0]
    shift = 1 if trap == 'shifted readout' else 0
    end = len(out) - shift
    return head_actions(t, 'model.action_head.model.', out[end - chunk * 7 : end], 7)


def cogact_actions(written, ids, image, start, trap=None):
    """Normalised actions of CogACT from the initial noise ``start`` ``[16, 7]``."""
    t = written.tensors
    table = weight(t, 'llm_backbone.llm.model.embed_tokens.weight')
    views = normal([image], MEANS['means'], MEANS['stds'])
    features = [
        vit_features(t, 'vision_backbone.dino_featurizer.', 3, views[0], 'gamma'),
        vit_features(t, 'vision_backbone.siglip_featurizer.', 4, views[1]),
    ]
    names = [f'projector.projector.{i}' for i in (0, 2, 4)]
    vision = mlp(t, names, torch.cat(features, -1))[0]
    rows = torch.cat((table[ids[:1]], vision, table[ids[1:]]))[None]
    config = LlamaConfig(
        **{**LLM, 'hidden_size': 256},
        num_attention_heads=2,
        vocab_size=64,
        rms_norm_eps=1e-6 if trap == 'eps 1e-6' else 1e-5,
        attn_implementation='eager',
    )
    model = LlamaModel(config)
    out = run_llm(t, 'llm_backbone.llm.model.', model, rows, trap != 'bidirectional')[0]
    z = out[-2 if trap == 'one row early' else -1]
    return ddim(t, z, start, 1.0 if trap == 'no guidance' else 1.5)


def dit_noise(t, x, step, z):
    net = 'action_model.net.'
    k = torch.arange(128) / 128
    angle = step * torch.exp(-math.log(10000) * k)
    code = torch.cat((angle.cos(), angle.sin()))
    first = apply(t, f'{net}t_embedder.mlp.2', F.silu(apply(t, f'{net}t_embedder.mlp.0', code)))
    first = first + apply(t, f'{net}z_embedder.linear', z)
    h = torch.cat((first[None], apply(t, f'{net}x_embedder.linear', x)))
    h = (h + weight(t, f'{net}positional_embedding'))[None]
    for i in range(2):
        b = f'{net}blocks.{i}.'
        plain = F.layer_norm(h, h.shape[-1:], eps=1e-6)
        h = h + apply(t, f'{b}attn.proj', attention(apply(t, f'{b}attn.qkv', plain), 1))
        plain = F.layer_norm(h, h.shape[-1:], eps=1e-6)
        inner = F.gelu(apply(t, f'{b}mlp.fc1', plain), approximate='tanh')
        h = h + apply(t, f'{b}mlp.fc2', inner)
    plain = F.layer_norm(h, h.shape[-1:], eps=1e-6)
    return apply(t, f'{net}final_layer.linear', plain)[0, 1:]


def ddim(t, z, x, guidance):
    def level(s):
        return np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2

    i = np.arange(100)
    betas = np.minimum(1 - level((i + 1) / 100) / level(i / 100), 0.999)
    bars = np.cumprod(1 - betas)
    empty = weight(t, 'action_model.net.z_embedder.uncondition')[0]
    for step in range(90, -1, -10):
        now, before = bars[step], bars[step - 10] if step else 1.0
        eps = dit_noise(t, x, step, empty)
        eps = eps + guidance * (dit_noise(t, x, step, z) - eps)
        clean = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        x = math.sqrt(before) * clean + math.sqrt(1 - before) * eps
    return x
