"""One door to every checkpoint: inspect a folder, or load it ready for the policy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm

from specprune_ros.bounded_files import reason
from specprune_ros.models import conventions
from specprune_ros.models.accel.device_memory import check_device_memory
from specprune_ros.models.build import Network, build, cast, empty
from specprune_ros.models.checkpoint import cogact, dexbotic, native, oft, pi0, pi0_statistics
from specprune_ros.models.checkpoint.action_meaning import FILE as OVERRIDES
from specprune_ros.models.checkpoint.action_meaning import (
    meaning,
    paths,
    require_stated,
    without_nulls,
)
from specprune_ros.models.checkpoint.files import (
    AGAIN,
    CheckpointError,
    check_values,
    read_json,
)
from specprune_ros.models.checkpoint.native import save_policy_model
from specprune_ros.models.checkpoint.report import Report, human
from specprune_ros.models.checkpoint.tokenizer_file import check_tokenizer
from specprune_ros.models.config import ConfigError, PolicyConfig
from specprune_ros.models.families import pi0_robots
from specprune_ros.models.families.paligemma import FlowPrompts, read_tokenizer
from specprune_ros.models.preprocess import Preprocessor
from specprune_ros.models.presets import default_tokenizer, preset
from specprune_ros.models.statistics import Statistics, StatisticsError, choose_key
from specprune_ros.models.tokens import VECTORS, Prompt, PromptTokenizer
from specprune_ros.pruning.interface import TokenLayout

__all__ = [
    'LoadedModel',
    'inspect_checkpoint',
    'is_released',
    'load_policy_model',
    'random_policy_model',
    'save_policy_model',
]

FAMILY_RULES: dict[str, dict[str, Any]] = {
    'openvla-oft': {},
    'db-oft': {'epsilon': 0.0, 'clip_actions': True},
    'cogact': {'epsilon': 0.0, 'clip_actions': True, 'binarise': 6},
    'db-cogact': {'epsilon': 0.0, 'clip_actions': True},
    'pi0': {'epsilon': 0.0, 'clip_proprio': False},
    'pi05': {'epsilon': 0.0, 'clip_proprio': False},
}


@dataclass(frozen=True)
class LoadedModel:
    """Everything a policy needs: the network, and what stands between its numbers and the robot's.

    ``notes`` are messages for the user. With ``random_weights`` the actions mean nothing.
    """

    model: Network
    config: PolicyConfig
    preprocessor: Preprocessor
    tokenizer: PromptTokenizer | FlowPrompts
    statistics: Statistics
    notes: list[str] = field(default_factory=list)
    random_weights: bool = False

    def encode(
        self, instruction: str, proprio: np.ndarray | None, cameras: int
    ) -> tuple[Prompt, TokenLayout, Tensor | None]:
        """Prompt, layout and normalised state (float32 ``[P]``, on the host) of a query with so
        many cameras; ``proprio`` is the robot's own, which some flow models read as text.
        """
        flow, state = self.config.flow, None
        if self.config.proprio_dim and proprio is not None:
            raw = pi0_robots.model_state(flow, proprio)
            state = torch.from_numpy(self.statistics.normalise_proprio(raw).astype(np.float32))
        words = (instruction,)
        if flow is not None and flow.state == 'prompt':
            words = (instruction, state.numpy())
        prompt = self.tokenizer.encode(*words)
        return prompt, self.model.layout(prompt, cameras), state

    def doubts(self, prompt: Prompt, proprio: np.ndarray | None) -> list[str]:
        """What the user should know of a query's inputs, in sentences."""
        found = []
        if self.config.proprio_dim and proprio is not None:
            state = pi0_robots.model_state(self.config.flow, proprio)
            far = self.statistics.far_outside(state)
            found += [far] if far else []
        if prompt.unknown:
            found.append(
                f'outside the vocabulary of this policy: {", ".join(prompt.unknown)}; '
                'it was not trained on these words'
            )
        return [*found, self.preprocessor.note] if self.preprocessor.note else found

    def robot_actions(self, normalised: np.ndarray, proprio: np.ndarray | None) -> np.ndarray:
        """The model's actions ``[K, D]`` in the robot's units and meaning, float64; relative
        columns are added to ``proprio``.
        """
        flow, actions = self.config.flow, self.statistics.unnormalise_actions(normalised)
        if flow is None:
            return actions
        state = None if proprio is None else pi0_robots.model_state(flow, proprio)
        return pi0_robots.robot_actions(flow, actions, state)

    def normalised_actions(self, actions: np.ndarray, proprio: np.ndarray | None) -> np.ndarray:
        """Inverse of :meth:`robot_actions`: relative columns as seen from ``proprio``."""
        flow = self.config.flow
        if flow is not None:
            state = None if proprio is None else pi0_robots.model_state(flow, proprio)
            actions = pi0_robots.model_actions(flow, actions, state)
        return self.statistics.normalise_actions(actions)


def is_released(path: Path | str) -> bool:
    """Whether a folder is in a format of the models' authors, not in this package's own.

    Raises ``CheckpointError`` for a folder that is neither.
    """
    folder = Path(path)
    return _family(folder, _config(folder))[0] != native.FORMAT


def inspect_checkpoint(
    path: Path | str,
    unnorm_key: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Report:
    """Say what a local folder holds and whether it would load; reads headers, not weights.

    ``overrides``: ``platform`` and fields of ``PolicyConfig`` that no file holds; they may also
    stand in ``specprune.json`` beside the checkpoint. Never raises for a bad checkpoint: what is
    wrong is listed in ``Report.problems``.
    """
    report = Report(Path(path))
    try:
        _inspect(report, unnorm_key, dict(overrides or {}))
    except (CheckpointError, ConfigError, StatisticsError) as error:
        report.problem(str(error))
    except OSError as error:
        report.problem(f'{error.filename or report.path}: cannot be read ({error.strerror})')
    except Exception as error:  # whatever else a file's content leads to
        report.problem(f'{report.path}: cannot be understood: {reason(error)}')
    return report


def _inspect(report: Report, key: str | None, overrides: dict[str, Any]) -> None:
    folder = report.path
    config = _config(folder)
    report.stated = dict.fromkeys(paths(overrides), 'given')
    # An empty one is what the shell makes of `specprune describe . > specprune.json`.
    if (folder / OVERRIDES).exists() and (folder / OVERRIDES).stat().st_size:
        file = without_nulls(read_json(folder / OVERRIDES))
        report.stated = {**dict.fromkeys(paths(file), OVERRIDES), **report.stated}
        overrides = {**file, **overrides}
    report.given = overrides
    if not isinstance(overrides.get('platform') or '', str):
        raise CheckpointError(f'{folder / OVERRIDES}: platform must be a name')
    family, part = _family(folder, config)
    report.family = family
    report.fact('family', family, 'config.json')
    statistics = folder / 'dataset_statistics.json'
    if part is pi0:
        report.requested_key = key or None
    elif part is not dexbotic:
        if statistics.exists():
            report.statistics = read_json(statistics)
            report.statistics_keys = keys = tuple(report.statistics)
            report.requested_key = key or (keys[0] if len(keys) == 1 else None)
        elif family != native.FORMAT:
            report.problem(
                f'{statistics} is absent: actions cannot be scaled without it (the sets in '
                'config.json are those of pre-training); download it'
            )
    part.inspect(report, config, overrides)
    if part is dexbotic:
        report.statistics = dexbotic.statistics(report)
        report.statistics_keys = tuple(report.statistics)
    policy = report.config
    if policy is None:
        return
    require_stated(report)
    scales = None
    report.family = policy.family
    report.tokenizer = pi0.tokenizer(report) if part is pi0 else _tokenizer(report, policy)
    if report.tokenizer is not None:
        _check_prompts(report, policy)
    if report.statistics is not None or report.scales:
        scales = _scales(report, policy, key)
        report.unnorm_key = scales.key
    elif policy.norm != 'identity':
        report.problem(f'{statistics} is absent: norm is {policy.norm}')
    report.meaning = meaning(report, scales)
    model = empty(policy)
    report.close(sum(parameter.numel() for parameter in model.parameters()))


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointError(
            f'{folder}: not a folder; give the local folder of a downloaded checkpoint'
        )
    if not os.access(folder, os.R_OK | os.X_OK):
        raise CheckpointError(f'{folder}: no permission to read; chmod u+rx it')
    pi0.refuse_strangers(folder)
    if not (folder / 'config.json').exists():
        raise CheckpointError(f'{folder}: holds no config.json; not a checkpoint folder')
    return read_json(folder / 'config.json')


def _family(folder: Path, config: Mapping[str, Any]) -> tuple[str, Any]:
    kind = config.get('model_type')
    if config.get('format') == native.FORMAT:
        return native.FORMAT, native
    if kind == 'openvla':
        return 'openvla-oft', oft
    if isinstance(kind, str) and kind in dexbotic.BASES:
        return dexbotic.BASES[kind].family, dexbotic
    if isinstance(kind, str) and kind.startswith('dexbotic'):
        dexbotic.refuse(folder / 'config.json', kind)
    if isinstance(config.get('vla'), Mapping):
        return 'cogact', cogact
    if pi0.recognise(folder, config):
        return 'pi0', pi0
    raise CheckpointError(
        f'{folder / "config.json"}: model_type {kind!r} is not known; OpenVLA-OFT (openvla), '
        'DB-OFT (dexbotic_oft), DB-CogACT (dexbotic_cogact), CogACT (a "vla" section), pi0 and '
        'pi0.5 (of lerobot, or converted by openpi) and our own format can be loaded'
    )


def _scales(report: Report, policy: PolicyConfig, key: str | None) -> Statistics:
    if report.scales:
        return pi0_statistics.scales(report, policy, key)
    name = choose_key(report.statistics, key, f'{report.path}: statistics')
    # Dexbotic serves proprioception raw.
    raw = policy.family in conventions.DEXBOTIC
    return Statistics.from_json(
        report.statistics,
        name,
        norm=policy.norm,
        action_dim=policy.action_dim,
        proprio_dim=0 if raw else policy.proprio_dim,
        **FAMILY_RULES[policy.family],
    )


def _tokenizer(report: Report, policy: PolicyConfig) -> Path | None:
    path = report.path / 'tokenizer.json'
    if path.exists():
        return path
    cure = (
        'copy the tokenizer.json of Llama 2 (any OpenVLA checkpoint has it) into the folder'
        if policy.family == 'cogact'
        else 'download it'
    )
    report.problem(f'{path} is absent: {cure}')
    return None


def _check_prompts(report: Report, policy: PolicyConfig) -> None:
    path = report.tokenizer
    try:
        _prompts(path, policy).encode('pick up the cube')
    except BaseException as error:  # a panic of the library is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        text = str(error) if isinstance(error, ValueError) else reason(error)
        report.problem(text if text.startswith(str(path)) else f'{path}: {text}')


def _prompts(path: Path, policy: PolicyConfig) -> PromptTokenizer | FlowPrompts:
    check_tokenizer(path)
    if policy.flow is not None:
        return flow_prompts(read_tokenizer(path, policy.decoder.vocab), policy)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f'not a tokenizer ({error}); download it again') from error
    prompts = PromptTokenizer(tokenizer, policy.template, policy.max_prompt, policy.decoder.vocab)
    text, ids = VECTORS.get(policy.decoder.vocab, ('', ()))
    whole = tokenizer.get_vocab_size() > 30_000  # not cut down for a test
    got = tuple(tokenizer.encode(text).ids) if text and whole else ids
    if got != ids:
        raise CheckpointError(f'{path}: {text!r} gives ids {list(got)}, want {list(ids)}; {AGAIN}')
    return prompts


def flow_prompts(tokenizer: Tokenizer, policy: PolicyConfig) -> FlowPrompts:
    """The prompts of a pi0 or pi0.5 policy."""
    flow = policy.flow
    state_dim = policy.proprio_dim if flow.state == 'prompt' else 0
    padded = flow.width if flow.state_padded else 0
    return FlowPrompts(
        tokenizer, policy.template, policy.max_prompt, policy.decoder.vocab, state_dim, padded
    )


def load_policy_model(
    path: Path | str,
    device: torch.device | str = 'cpu',
    dtype: torch.dtype = torch.float32,
    unnorm_key: str | None = None,
    progress: bool = True,
    overrides: Mapping[str, Any] | None = None,
    fast_images: bool = False,
) -> LoadedModel:
    """Load a checkpoint folder straight to a device and dtype.

    Weights go file by file, tensor by tensor, into their final place; no copy of a shard is made.
    Raises ``CheckpointError`` naming the file and the cure, or ``DeviceMemoryError``, before any
    weight is used.
    """
    report = inspect_checkpoint(path, unnorm_key, overrides)
    report.raise_problems()
    policy = report.config
    model = cast(empty(policy), dtype)
    check_device_memory(model, device, str(path))
    try:
        model.to_empty(device=device)
    except RuntimeError as error:
        raise CheckpointError(
            f'{path}: {human(report.parameters * dtype.itemsize)} do not fit on {device} ({error})'
        ) from error
    fill(model, report, progress)
    statistics = Statistics.identity()
    if report.statistics is not None or report.scales:
        statistics = _scales(report, policy, unnorm_key)
    preprocessor = Preprocessor(policy, device, dtype, fast=fast_images)
    notes = list(report.notes)
    if preprocessor.note:
        notes.append(preprocessor.note)
    tokenizer = _prompts(report.tokenizer, policy)
    return LoadedModel(model, policy, preprocessor, tokenizer, statistics, notes)


def random_policy_model(
    name: str,
    seed: int = 0,
    device: torch.device | str = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """A preset with random weights and the small word tokenizer. Its actions mean nothing.

    Raises ``ValueError`` for an unknown name and ``DeviceMemoryError`` where it does not fit.
    """
    policy = preset(name)
    words = default_tokenizer()
    if policy.flow is not None:
        tokenizer = flow_prompts(words, policy)
    else:
        tokenizer = PromptTokenizer(
            words, policy.template, policy.max_prompt, policy.decoder.vocab
        )
    return LoadedModel(
        model=build(policy, seed, device, dtype, name),
        config=policy,
        preprocessor=Preprocessor(policy, device, dtype),
        tokenizer=tokenizer,
        statistics=Statistics.identity(),
        notes=[f'random weights (preset {name}, seed {seed}): the actions mean nothing'],
        random_weights=True,
    )


def fill(model: nn.Module, report: Report, progress: bool) -> None:
    """Copy every tensor of the report's files into the network; all parameters must be covered."""
    parameters = dict(model.named_parameters())
    covered = dict.fromkeys(parameters, 0)
    sums = {
        slot.target
        for _, chosen in report.work
        for _, entry in chosen
        for slot in entry.slots
        if slot.add
    }
    total = sum(len(chosen) for _, chosen in report.work)
    with (
        torch.no_grad(),
        tqdm(total=total, desc='weights', unit='tensor', disable=not progress) as bar,
    ):
        for name in sums:
            parameters[name].zero_()
        for source, chosen in report.work:
            for name, entry in chosen:
                tensor = source.read(name)
                check_values(source.path, name, tensor)
                for slot in entry.slots:
                    place = slot.view(parameters[slot.target])
                    part = slot.source(tensor).to(place.device)
                    if slot.add:
                        place.add_(part)
                        covered[slot.target] += 0 if covered[slot.target] else place.numel()
                    else:
                        place.copy_(part)
                        covered[slot.target] += place.numel()
                del tensor
                bar.update()
            source.close()
    wrong = sorted(name for name, n in covered.items() if n != parameters[name].numel())
    if wrong:
        raise CheckpointError(f'{report.path}: {wrong[0]} was not filled exactly once')
