"""Stock loop, transformers' loop, dense and pruned on one model, interleaved in one run.

    python benchmarks/engine.py --threads 2 --json benchmarks/results/engine_oft_medium_cpu.json

(after `. scripts/env.sh`). As `specprune bench --sweep`, with one contestant more: the decoder
replaced by transformers' own ``LlamaModel`` with SDPA, made bidirectional, on the same weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from record import write
from torch import nn
from transformers import LlamaConfig, LlamaModel

from specprune_ros.bench.measure import bench
from specprune_ros.bench.race import Contestant
from specprune_ros.bench.report import print_tables
from specprune_ros.models.build import Network
from specprune_ros.models.decoder import Decoder, DecoderOutput, KVCache, LayerRows
from specprune_ros.models.families.base import Embedded
from specprune_ros.models.load import LoadedModel
from specprune_ros.policy.engine.eager import EagerEngine
from specprune_ros.policy.policy import Policy
from specprune_ros.pruning.interface import PrunePass
from specprune_ros.pruning.params import PruningParams


class TheirLoop:
    """Decodes a dense query by transformers' model."""

    def __init__(self, decoder: Decoder) -> None:
        self.theirs = llama(decoder)

    def __call__(
        self,
        model: Network,
        embedded: Embedded,
        prune_pass: PrunePass | None,
        cache: KVCache | None,
    ) -> DecoderOutput:
        """The decoder's part of a query."""
        layout, x = embedded.layout, embedded.hidden
        rows, depth = layout.length, layout.depth
        return DecoderOutput(
            hidden=self.theirs(inputs_embeds=x, use_cache=False).last_hidden_state,
            positions=torch.arange(rows, device=x.device),
            vision_ids=torch.arange(layout.vision_tokens, device=x.device),
            layer_tokens=(layout.vision_tokens,) * depth,
            layer_rows=(rows,) * depth,
            work=(LayerRows(rows, rows, rows),) * depth,
        )


def llama(decoder: Decoder) -> LlamaModel:
    """transformers' model of the same sizes on views of the same weights, bidirectional."""
    config = decoder.config
    if config.qkv_bias:
        raise ValueError('this comparison is for Llama-shaped decoders, without biases')
    weight = decoder.norm.weight
    theirs = LlamaModel(
        LlamaConfig(
            hidden_size=config.width,
            intermediate_size=config.mlp,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            vocab_size=1,  # the rows come embedded
            bos_token_id=None,
            eos_token_id=None,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={'rope_type': 'default', 'rope_theta': config.rope_theta},
            attn_implementation='sdpa',
        )
    )
    theirs = theirs.eval().requires_grad_(False).to(weight.device, weight.dtype)
    _share(theirs.norm, weight)
    for ours, layer in zip(decoder.layers, theirs.layers, strict=True):
        attn = ours.attn
        widths = (attn.query_width, *(attn.kv_heads * attn.head_dim,) * 2)
        queries, keys, values = attn.qkv.weight.split(widths)
        gate, up = ours.gate_up.weight.chunk(2)
        for module, part in (
            (layer.input_layernorm, ours.attn_norm.weight),
            (layer.self_attn.q_proj, queries),
            (layer.self_attn.k_proj, keys),
            (layer.self_attn.v_proj, values),
            (layer.self_attn.o_proj, attn.out.weight),
            (layer.post_attention_layernorm, ours.mlp_norm.weight),
            (layer.mlp.gate_proj, gate),
            (layer.mlp.up_proj, up),
            (layer.mlp.down_proj, ours.down.weight),
        ):
            _share(module, part)
        # Without a mask SDPA then attends in both directions, with its fastest kernel.
        layer.self_attn.is_causal = config.causal
    return theirs


def _share(module: nn.Module, weight: torch.Tensor) -> None:
    module.weight = nn.Parameter(weight, requires_grad=False)


def their_loop(loaded: LoadedModel) -> list[Contestant]:
    """The contestant for :func:`bench`."""
    engine = EagerEngine(loaded, TheirLoop(loaded.model.decoder))
    policy = Policy(loaded, PruningParams(pruner='dense', mode='coarse'), engine=engine)
    policy.wants_overlay = False
    return [Contestant('dense', policy, 'transformers')]


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='oft-medium')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--dtype', default='auto')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument('--sweep', type=int, default=64, metavar='STEP')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--plot', type=Path)
    args = parser.parse_args()
    result = bench(
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
        repeats=args.repeats,
        sweep_step=args.sweep,
        progress=True,
        more=their_loop,
    )
    print_tables(result)
    reported = result.sweep.summary() if result.sweep else ''
    rows = {'rows': result.rows, 'sweep': result.sweep_rows, 'sweep_says': reported}
    write(args.json, {'benchmark': 'engine', **rows, 'peak_device_mib': result.peak_mib})
    if args.plot:
        from specprune_ros.bench.report import draw_roofline

        draw_roofline(result.rows, args.plot)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
