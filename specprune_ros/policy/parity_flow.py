"""Golden packs of pi0 and pi0.5: a tiny checkpoint, inputs, and what lerobot made of them.

A pack is a folder with ``checkpoint/`` and ``cases.npz`` (see its README.md). :func:`run` loads
the checkpoint through the public loader, gives :meth:`Policy.act` the same inputs in float32,
dense, and compares prompt ids, images, states, the sampler's x on the way, attention and actions,
with and without real-time chunking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from specprune_ros.models.load import inspect_checkpoint, load_policy_model
from specprune_ros.policy.observation import CameraImage, Observation
from specprune_ros.policy.policy import Policy
from specprune_ros.policy.real_time_chunking import ChunkingRules, Continuation, prefix_weights
from specprune_ros.pruning.params import PruningParams

# Largest absolute differences that the packs' READMEs allow; attention: of the largest value.
TOLERANCES = {
    'pixels': 1e-5, 'state': 1e-5, 'v0': 5e-5, 'x1': 1e-5, 'x5': 2e-4, 'x10': 2e-4,
    'actions': 2e-4, 'rtc': 3e-4, 'weights': 1e-6, 'attention': 1e-3,
}  # fmt: skip


@dataclass
class FlowParity:
    """How far a pack is from lerobot: the largest difference of each quantity over all cases."""

    pack: str
    family: str
    cases: int = 0
    ids: bool = True
    differences: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether everything is within the packs' tolerances."""
        within = all(value <= TOLERANCES[name] for name, value in self.differences.items())
        return self.cases > 0 and self.ids and within

    def note(self, name: str, ours: object, theirs: np.ndarray, relative: bool = False) -> None:
        """Compare, and keep the worst. Raises ``ValueError`` for different shapes."""
        a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        if a.shape != b.shape:
            raise ValueError(f'{self.pack}, {name}: shape {a.shape} against {b.shape}')
        worst = float(np.abs(a - b).max()) / (float(np.abs(b).max()) if relative else 1.0)
        self.differences[name] = max(worst, self.differences.get(name, 0.0))

    def __str__(self) -> str:
        listed = ', '.join(f'{name} {value:.1e}' for name, value in self.differences.items())
        verdict = 'passed' if self.passed else 'FAILED'
        return f'{self.pack} ({self.family}, {self.cases} cases): {listed}: {verdict}'


def load(pack: Path, **options: object) -> Policy:
    """The pack's policy, dense; ``options`` are the loader's overrides."""
    loaded = load_policy_model(pack / 'checkpoint', progress=False, overrides=options)
    # The weights are random: no action is absurd.
    return Policy(loaded, PruningParams(pruner='dense'), max_normalised_action=float('inf'))


def of_family(family: str, folder: Path) -> Iterator[FlowParity]:
    """Run every pack in ``folder`` whose checkpoint is of this family, by name."""
    for path in sorted(folder.glob('*/checkpoint')):
        if inspect_checkpoint(path).family == family:
            yield run(path.parent)


def run(pack: Path, policy: Policy | None = None, first_only: bool = False) -> FlowParity:
    """Run a pack, with another policy than its own where one is given; ``first_only``: its first
    case, without real-time chunking. Raises what loading and acting raise.
    """
    with np.load(pack / 'cases.npz', allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    policy = policy or load(pack)
    result = FlowParity(pack.name, policy.config.family)
    for number in sorted(int(n[1 : -len('.noise')]) for n in data if n.endswith('.noise')):
        _case(policy, data, f'c{number}', result)
        result.cases += 1
        if first_only:
            return result
    if 'rtc.case' in data:
        _rtc(policy, data, result)
    return result


def observation(data: Mapping[str, np.ndarray], key: str) -> Observation:
    """The input of a case."""
    images = {
        str(name): CameraImage(data[f'{key}.image.{name}'], stamp_ns=1)
        for name in data[f'{key}.cameras']
    }
    state = np.asarray(data[f'{key}.state'], np.float64)
    return Observation(images, str(data[f'{key}.instruction']), state)


@torch.inference_mode()
def _case(policy: Policy, data: Mapping[str, np.ndarray], key: str, result: FlowParity) -> None:
    loaded, config, model = policy.loaded, policy.config, policy.loaded.model
    case, noise = observation(data, key), data[f'{key}.noise']
    policy.reset('next case')
    result.note('actions', policy.act(case, noise=noise).actions, data[f'{key}.actions'])

    given = {config.camera(name): image for name, image in case.images.items()}
    seen = [
        loaded.preprocessor.image(given[camera].pixels, camera)
        for camera in config.cameras
        if camera in given
    ]
    pixels = loaded.preprocessor.normalise(torch.stack(seen))
    if f'{key}.pixels' in data:
        result.note('pixels', pixels, data[f'{key}.pixels'])
    state = loaded.statistics.normalise_proprio(case.proprio)
    result.note('state', state, data[f'{key}.state_normalised'])
    prompt = loaded.tokenizer.encode(case.instruction, np.asarray(state, np.float32))
    ids = data[f'{key}.token_ids'][data[f'{key}.token_mask']]
    result.ids = result.ids and np.array_equal(prompt.ids, ids)
    embedded = model.embed(pixels, prompt)
    layout = embedded.layout
    output = model.decoder(embedded.hidden, layout, read=layout.action)
    start = torch.from_numpy(noise)
    trace: list[torch.Tensor] = []
    proprio = torch.from_numpy(np.asarray(state, np.float32))
    model.sample(output, layout, start, proprio, trace=trace)
    for steps in (1, 5, 10):
        result.note(f'x{steps}', trace[steps - 1], data[f'{key}.x{steps}'])
    context, first = model.with_state(output.context, layout.length, proprio)
    codes = model.codes(config.flow.steps)
    v0, _ = model.velocity(start[None], codes[0], context, first)
    result.note('v0', v0[0], data[f'{key}.v0'])
    if int(data['attn.case']) == int(key[1:]):
        step, layer = int(data['attn.step']), int(data['attn.layer']) + 1
        x = trace[step - 1] if step else start
        every = {layer: (0, layout.length)}
        _, observed = model.velocity(x[None], codes[step], context, first, every)
        result.note('attention', observed[layer].mean(0), data['attn.to_prefix'], relative=True)


def _rtc(policy: Policy, data: Mapping[str, np.ndarray], result: FlowParity) -> None:
    """The same case again, going on from a previous chunk."""
    key = f'c{int(data["rtc.case"])}'
    schedules = [n.split('.')[1] for n in data if n.startswith('rtc.') and n.endswith('.x10')]
    schedules = [name for name in schedules if name != 'x10']
    given = str(data['rtc.schedule'])
    action_dim = policy.config.action_dim
    for schedule in (given, *schedules):
        prefix = 'rtc.' if schedule == given else f'rtc.{schedule}.'
        rules = ChunkingRules(
            int(data['rtc.execution_horizon']),
            schedule.lower(),
            float(data['rtc.max_guidance_weight']),
        )
        delay, previous = int(data['rtc.inference_delay']), data['rtc.previous']
        horizon = min(rules.execution_horizon, len(previous))
        weights = prefix_weights(delay, horizon, policy.config.chunk, rules.schedule)
        result.note('weights', weights, data[f'{prefix}weights'])
        policy.reset('next case')
        answer = policy.act(
            observation(data, key),
            noise=data[f'{key}.noise'],
            continuation=Continuation(previous, delay, rules),
        )
        x10 = data[f'{prefix}x10'][:, :action_dim]
        unscaled = policy.loaded.statistics.unnormalise_actions(x10)
        result.note('rtc', answer.actions, data.get(f'{prefix}actions', unscaled))
