"""One query as tensors: :func:`forward_step`, what it takes and what it gives."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from specprune_ros.models.build import Network
from specprune_ros.models.config import PolicyConfig
from specprune_ros.models.decoder import DecoderOutput, KVCache
from specprune_ros.models.families.base import Embedded
from specprune_ros.models.families.pi0 import Guide
from specprune_ros.models.flops import query_flops
from specprune_ros.models.load import LoadedModel
from specprune_ros.models.tokens import Prompt
from specprune_ros.pruning.interface import Mode, PassOutcome, PrunePass, QueryContext, TokenLayout
from specprune_ros.pruning.params import PruningParams, specs
from specprune_ros.pruning.registry import pruner, uses_similarity
from specprune_ros.pruning.similarity import patch_cosine

_PLAIN = PruningParams()


@dataclass(frozen=True)
class GraphKey:
    """Everything about a query that is fixed when it is captured; equal keys share a graph.

    ``compared``: a past image is there. ``carried``: name, shape and dtype of what the previous
    query left. ``guided``: a previous chunk is there to go on from.
    """

    layout: TokenLayout
    params: PruningParams
    mode: Mode
    compared: bool
    carried: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
    guided: bool = False


@dataclass(frozen=True)
class StepInputs:
    """The tensors of one query, and what only the host reads.

    On the model's device, but for ``proprio``, which may lie on the host.

    ``images``: uint8 ``[cameras, S, S, 3]`` as the policy sees them; ``reference_images``: the
    same of the reference moment, or ``None``. ``ids``: int64 ``[1, P]`` of ``prompt``.
    ``proprio``: float32 ``[proprio_dim]``, normalised, or ``None``. ``noise``: float32 ``[K, D]``
    of a diffusion head (``[K, W]`` of a flow sampler), or ``None``. ``guide``: what real-time
    chunking pulls a flow sampler towards. ``carry``: what this pruner's previous pass returned.
    ``cache``, ``seed``, ``speed_xyz`` (m/s) and ``displacement`` (m) are for pruners that keep
    state on the host.
    """

    images: Tensor
    prompt: Prompt
    ids: Tensor
    reference_images: Tensor | None = None
    proprio: Tensor | None = None
    noise: Tensor | None = None
    guide: Guide | None = None
    carry: Mapping[str, Tensor] = field(default_factory=dict)
    cache: KVCache | None = None
    seed: int = 0
    speed_xyz: float | None = None
    displacement: float | None = None

    def graph_key(self, layout: TokenLayout, params: PruningParams, mode: Mode) -> GraphKey:
        """The graph key of these inputs."""
        carried = tuple(
            (name, tuple(value.shape), value.dtype) for name, value in sorted(self.carry.items())
        )
        compared, guided = self.reference_images is not None, self.guide is not None
        return GraphKey(layout, of_the_pass(params), mode, compared, carried, guided)

    def tensors(self) -> dict[str, Tensor]:
        """What changes from query to query of one key, by name."""
        named = {
            'images': self.images,
            'reference_images': self.reference_images,
            'ids': self.ids,
            'proprio': self.proprio,
            'noise': self.noise,
            **({} if self.guide is None else self.guide._asdict()),
            **{f'carry.{name}': value for name, value in self.carry.items()},
        }
        return {name: value for name, value in named.items() if value is not None}

    def on(self, device: torch.device) -> StepInputs:
        """These inputs, all on the device."""
        if self.proprio is None or self.proprio.device == device:
            return self
        return replace(self, proprio=self.proprio.to(device))

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> StepInputs:
        """These inputs with other tensors of the same names."""
        carry = {name: tensors[f'carry.{name}'] for name in self.carry}
        plain = {n: t for n, t in tensors.items() if not n.startswith('carry.')}
        guide = self.guide
        if guide is not None:
            guide = Guide(*(plain.pop(name) for name in Guide._fields))
        return replace(self, carry=carry, guide=guide, **plain)


@lru_cache(maxsize=64)
def of_the_pass(params: PruningParams) -> PruningParams:
    """``params`` with everything that no pass reads as it is by default."""
    host_only = {spec.name for spec in specs() if spec.host_only}
    own = tuple((name, value) for name, value in params.own if name not in host_only)
    shared = {f.name for f in fields(params)} & host_only
    return replace(params, own=own, **{name: getattr(_PLAIN, name) for name in shared})


def compares(params: PruningParams) -> bool:
    """Whether a query with these parameters compares with a past image."""
    return params.mode != 'dense' and (params.refresh_change < 1.0 or uses_similarity(params))


# Runs the language model in the place of the package's own decoder.
Decode = Callable[[Network, Embedded, PrunePass | None, KVCache | None], DecoderOutput]


@dataclass(frozen=True)
class PassMetadata:
    """What is known of a pass without its numbers: the same for every query of a captured key.

    ``mode`` is the one the pass ran in; where that is dense although the key's is not,
    ``dense_because`` says why. ``sets`` names the token sets; ``layers``, ``after`` and ``mean``
    are those of ``TokenCounts``; ``judged``: the prior can be judged by what this query attended
    to.
    """

    mode: Mode
    sets: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    mean: float = 0.0
    judged: bool = False
    flops: float = 0.0
    notes: tuple[str, ...] = ()
    dense_because: str = ''


@dataclass(frozen=True)
class StepDetails:
    """Everything a query computed on its way, for code that looks into one.

    ``similarity``: float32 ``[V]``, cosine of each patch with the reference image's, or ``None``.
    ``output`` is the decoder's, ``outcome`` the pruner's own account with its scores.
    """

    key: GraphKey
    inputs: StepInputs
    similarity: Tensor | None
    output: DecoderOutput
    outcome: PassOutcome


@dataclass(frozen=True)
class DeviceOutputs:
    """What a query leaves on the device.

    ``packed``: float32, the normalised actions ``[K * D]`` and then ``counts``: tokens per set of
    ``metadata.sets``, their union, and for the prior: hits, wanted. ``carry`` is the next query's;
    ``sets`` are bool ``[V]``; ``left``: int64 patch ids after the last boundary, ``None`` where
    nothing was pruned. ``details`` are there where they were requested.
    """

    packed: Tensor
    carry: dict[str, Tensor]
    sets: dict[str, Tensor]
    left: Tensor | None
    metadata: PassMetadata
    details: StepDetails | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Everything on the device, by name."""
        named = {
            'packed': self.packed,
            **{f'carry.{name}': value for name, value in self.carry.items()},
            **{f'set.{name}': value for name, value in self.sets.items()},
        }
        return named if self.left is None else {**named, 'left': self.left}


@dataclass(frozen=True)
class StepOutputs:
    """The outputs of a query whose numbers the host has read.

    ``actions``: float64 ``[K, D]``, normalised. ``counts``: tokens per set. ``recall``: share of
    what this query attended to that the prior had named. ``seconds`` of the stages preprocess,
    vision, decoder, head; empty where they were not taken apart.
    """

    actions: np.ndarray
    counts: Mapping[str, int]
    union: int
    recall: float | None
    device_outputs: DeviceOutputs
    seconds: tuple[float, ...] = field(default=())


def forward_step(
    loaded: LoadedModel,
    key: GraphKey,
    inputs: StepInputs,
    timer: StageTimer | None = None,
    decode: Decode | None = None,
    begin: Callable[[QueryContext], PrunePass] | None = None,
    details: bool = False,
    cancelled: Callable[[], bool] | None = None,
) -> DeviceOutputs:
    """Run one query: the one way from its tensors to the actions and what pruning did.

    ``timer`` marks the stages. ``decode`` runs the language model, by default the package's own
    decoder, which calls ``cancelled`` between layers. ``begin`` starts the pruner's pass, by
    default that of the method which the parameters name. With ``details`` the outputs hold
    everything the query computed (for ``explain``, ``verify`` and measurements; not under a CUDA
    graph, whose memory that is). Nothing here waits for the device unless the pruner does. Call
    it under ``torch.inference_mode()``.
    """
    model, config = loaded.model, loaded.config
    timer = timer or stage_timer_on(inputs.images.device)
    timer.mark()
    similarity = None
    if inputs.reference_images is not None:
        similarity = patch_cosine(inputs.images, inputs.reference_images, config.grid)
    pixels = loaded.preprocessor.normalise(inputs.images)
    timer.mark()
    embedded = model.embed(pixels, inputs.prompt, inputs.proprio, inputs.ids)
    timer.mark()
    prune_pass = begin_pass(model, key, inputs, embedded, similarity, begin)
    if decode is None:
        rows, hidden, layout = embedded.layout.action, embedded.hidden, embedded.layout
        output = model.decoder(hidden, layout, prune_pass, inputs.cache, rows, cancelled)
    else:
        output = decode(model, embedded, prune_pass, inputs.cache)
    timer.mark()
    steering = {}
    if config.flow is not None:
        # The expert's attention is the pruner's as well: its pass ends after the head.
        steering = dict(proprio=inputs.proprio, guide=inputs.guide, prune=prune_pass)
    actions = model.head(output, embedded.layout, inputs.noise, **steering)
    outcome = prune_pass.finish()
    outputs = device_outputs(config, key, embedded, output, outcome, actions)
    timer.mark()
    if details:
        found = StepDetails(key, inputs, similarity, output, outcome)
        outputs = replace(outputs, details=found)
    return outputs


def begin_pass(
    model: Network,
    key: GraphKey,
    inputs: StepInputs,
    embedded: Embedded,
    similarity: Tensor | None,
    begin: Callable[[QueryContext], PrunePass] | None = None,
) -> PrunePass:
    """The pruner's pass for one query."""
    context = QueryContext(
        layout=embedded.layout,
        params=key.params,
        mode=key.mode,
        similarity=similarity,
        carry=inputs.carry,
        images=inputs.images,
        vision=embedded.vision,
        text=embedded.text,
        probe=partial(model.decoder.probe, embedded.hidden, embedded.layout),
        speed_xyz=inputs.speed_xyz,
        displacement=inputs.displacement,
        seed=inputs.seed,
    )
    return (begin or pruner(key.params.pruner).begin)(context)


def device_outputs(
    config: PolicyConfig,
    key: GraphKey,
    embedded: Embedded,
    output: DecoderOutput,
    outcome: PassOutcome,
    actions: Tensor,
) -> DeviceOutputs:
    """What a query leaves on the device, once its pass is finished."""
    layout, device = embedded.layout, actions.device
    union = torch.zeros(layout.vision_tokens, dtype=torch.bool, device=device)
    for members in outcome.sets.values():
        union = union | members.to(device)
    counts = [members.to(device).sum() for members in outcome.sets.values()]
    counts.append(union.sum())
    named = outcome.sets.get('global')
    judged = named is not None and outcome.attended is not None
    if judged:
        attended = outcome.attended()
        counts += [(named & attended).sum(), attended.sum()]
    else:
        counts += [torch.zeros((), dtype=torch.int64, device=device)] * 2
    ran = zip(output.layer_tokens, output.work, strict=True)
    present = [count for count, work in ran if work.keys]  # a skipped layer has none
    metadata = PassMetadata(
        mode=Mode.DENSE if outcome.dense_because else key.mode,
        sets=tuple(outcome.sets),
        layers=tuple(boundary for boundary, _ in outcome.kept),
        after=tuple(len(ids) for _, ids in outcome.kept),
        mean=float(np.mean(present)),
        judged=judged,
        flops=float(query_flops(config, output, layout.cameras).flops),
        notes=tuple(outcome.notes),
        dense_because=outcome.dense_because,
    )
    return DeviceOutputs(
        packed=torch.cat((actions.float().flatten(), torch.stack(counts).float())),
        carry=outcome.carry,
        sets=outcome.sets,
        left=outcome.kept[-1][1] if outcome.kept else None,
        metadata=metadata,
    )


def read(
    given: DeviceOutputs, numbers: np.ndarray, chunk: int, seconds: tuple[float, ...] = ()
) -> StepOutputs:
    """The outputs once ``numbers``, float32, ``given.packed`` on the host, are there."""
    metadata = given.metadata
    tail = len(metadata.sets) + 3
    actions = numbers[:-tail].astype(np.float64).reshape(chunk, -1)
    counts = [int(number) for number in numbers[-tail:]]
    union, hits, wanted = counts[-3:]
    return StepOutputs(
        actions=actions,
        counts=dict(zip(metadata.sets, counts, strict=False)),
        union=union,
        recall=hits / wanted if metadata.judged and wanted else None,
        device_outputs=given,
        seconds=seconds,
    )


STAGES = 4  # preprocess, vision, decoder, head: of StageTimes, in order


@dataclass
class HostStageTimer:
    """StageTimer by the host's clock, for a device that is done when a call returns."""

    _times: list[float] = field(default_factory=list)

    def mark(self) -> None:
        """A stage begins or ends here."""
        self._times.append(time.perf_counter())

    def seconds(self) -> tuple[float, ...]:
        """Seconds of each stage."""
        return tuple(b - a for a, b in itertools.pairwise(self._times))


class CudaStageTimer:
    """StageTimer by events in the stream.

    ``external`` ones become nodes of a graph that is being captured, so that every replay sets
    them anew.
    """

    def __init__(self, external: bool = False) -> None:
        self._events = [
            torch.cuda.Event(enable_timing=True, external=external) for _ in range(STAGES + 1)
        ]
        self._next = 0

    def mark(self) -> None:
        """A stage begins or ends here in the current stream."""
        self._events[self._next].record()
        self._next += 1

    def seconds(self) -> tuple[float, ...]:
        """Seconds of each stage; the device must have passed the last mark."""
        return tuple(a.elapsed_time(b) / 1000 for a, b in itertools.pairwise(self._events))


StageTimer = HostStageTimer | CudaStageTimer


def stage_timer_on(device: torch.device) -> StageTimer:
    """StageTimer for a query that is not captured."""
    return CudaStageTimer() if device.type == 'cuda' else HostStageTimer()
