"""pi0 and pi0.5 folders: lerobot's (config, processors, their statistics) and what openpi's
JAX-to-PyTorch converter writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from specprune_ros.models.checkpoint import shards, tensor_names
from specprune_ros.models.checkpoint.files import CheckpointError, read_json
from specprune_ros.models.checkpoint.pi0_statistics import lerobot_scales, openpi_scales
from specprune_ros.models.checkpoint.report import Report
from specprune_ros.models.checkpoint.vision_sizes import Shapes, count_layers, side
from specprune_ros.models.config import ActionConfig, FlowConfig, PolicyConfig
from specprune_ros.models.conventions import plain_action
from specprune_ros.models.families.paligemma import PLACES, find_tokenizer
from specprune_ros.models.presets import GEMMA_300M, PI0_3B, SIGLIP_224, expert_of
from specprune_ros.models.statistics import choose_key

CONVERTER = 'examples/convert_jax_model_to_pytorch.py of openpi'
# What no file says; beside the fields of PolicyConfig.
OPTIONS = ('rope', 'state', 'state_tokens', 'lerobot_era', 'image_resize')
# Head counts and sizes follow from no shape. The published sizes are known; others stand in
# sizes.json, in the folder or beside it.
HEADS = {'heads': 8, 'kv_heads': 1, 'head_dim': 0, 'vision_heads': 0}
CAMERAS = ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb')
_IMAGES = 'observation.images.'
_X = 'paligemma_with_expert.'
_V = f'{_X}paligemma.model.'
_HARMLESS = ('to_batch_processor', 'device_processor', 'pi0_new_line_processor',
             'tokenizer_processor')  # fmt: skip
_RELATIVE = ('relative_actions_processor', 'delta_actions_processor', 'absolute_actions_processor')
_STATE_TEXT = 'pi05_prepare_state_tokenizer_processor_step'
_JOINTS = tuple(f'{arm}_joint_{i}' for arm in ('left', 'right') for i in range(1, 7))
_ALOHA = ActionConfig(
    dims=(*_JOINTS[:6], 'left_gripper', *_JOINTS[6:], 'right_gripper'),
    kind='joint_position', rotation='none', reference='none', gripper_dim=-1,
)  # fmt: skip
_ARMS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12)
_DROID = {
    'cameras': CAMERAS[:2], 'proprio_dim': 8, 'action_dim': 8, 'control_hz': 15.0, 'execute': 8,
}  # fmt: skip
_DROID_STEPS = (10, 15)  # action_horizon of pi0_droid and pi05_droid
# openpi's released policies, by the robot of their statistics.
ROBOTS: dict[str, dict[str, Any]] = {
    'libero': {
        'cameras': CAMERAS[:2], 'proprio_dim': 8, 'action_dim': 7, 'control_hz': 20.0,
        'action': PI0_3B.action, 'execute': 5,
        'relative': {'pi0': tuple(range(6))}, 'state': {'pi05': 'none'},
    },
    'droid': {
        **_DROID,
        # Joint velocities: what a joint moves in a step is a fifteenth of them.
        'action': ActionConfig(
            dims=(*(f'joint_{i}' for i in range(1, 8)), 'gripper'), kind='joint_delta',
            rotation='none', gripper_dim=7, gripper_sense='one_is_closed',
            scale=(1 / 15,) * 7 + (1.0,),
        ),
    },
    'droid_joint_position': {
        **_DROID,
        'action': ActionConfig(
            dims=(*(f'joint_{i}' for i in range(1, 8)), 'gripper'), kind='joint_position',
            rotation='none', reference='none', accumulates='none', gripper_dim=7,
            gripper_sense='one_is_closed',
        ),
        'relative': {'pi0': tuple(range(7)), 'pi05': tuple(range(7))},
    },
    'aloha': {
        'cameras': CAMERAS, 'proprio_dim': 14, 'action_dim': 14, 'control_hz': 50.0,
        'execute': 25, 'action': _ALOHA, 'robot': 'aloha',
        'relative': {'pi0': _ARMS, 'pi05': _ARMS},
    },
    'aloha_sim': {
        'cameras': CAMERAS[:1], 'proprio_dim': 14, 'action_dim': 14, 'control_hz': 50.0,
        'action': _ALOHA, 'robot': 'aloha',  # adapt_to_pi is not switched off there
    },
}  # fmt: skip


def recognise(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether this is a folder of pi0 or pi0.5, of lerobot or of openpi."""
    return config.get('type') in ('pi0', 'pi05') or is_openpi(config)


def is_openpi(config: Mapping[str, Any]) -> bool:
    """Whether ``config.json`` is the one that openpi's converter writes."""
    return 'type' not in config and {'action_horizon', 'paligemma_variant'} <= set(config)


def refuse_strangers(folder: Path) -> None:
    """Raise ``CheckpointError`` for relatives that cannot be loaded, and say what can be done."""
    if (folder / 'adapter_config.json').exists():
        raise CheckpointError(
            f'{folder}: holds a LoRA adapter (adapter_config.json), not a model: merge it '
            'into its base model first'
        )
    if (folder / 'params').is_dir() and not (folder / shards.SINGLE).exists():
        raise CheckpointError(
            f'{folder}: an openpi checkpoint of JAX (orbax, params/): convert it with '
            f'{CONVERTER}, float32, and copy assets/ beside the result'
        )
    trained = any((folder / name).exists() for name in ('metadata.pt', 'optimizer.pt', 'assets'))
    if trained and (folder / shards.SINGLE).exists() and not (folder / 'config.json').exists():
        raise CheckpointError(
            f"{folder}: holds no config.json, as what openpi's PyTorch training saves: write one "
            'with the action_dim, action_horizon, paligemma_variant and action_expert_variant of '
            'the training configuration, such as {"action_dim": 32, "action_horizon": 50, '
            '"paligemma_variant": "gemma_2b", "action_expert_variant": "gemma_300m"}, and where '
            'that says bfloat16 {"rope": "bf16"} into specprune.json'
        )


def inspect(report: Report, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Fill the report for a folder of lerobot or openpi."""
    folder = report.path
    refuse_strangers(folder)
    options = {name: overrides[name] for name in (*OPTIONS, *HEADS) if name in overrides}
    overrides = {name: value for name, value in overrides.items() if name not in options}
    found = shards.find(folder, report)
    lead = 'model.' if any(name.startswith(f'model.{_X}') for name in found.shapes) else ''
    shapes = {name.removeprefix(lead): shape for name, shape in found.shapes.items()}
    if report.problems:
        return
    family = _family(report, config, shapes)
    if family is None:
        return
    report.fact('architecture', family, 'tensor names')
    tower = _tower_level(shapes)
    sizes = _sizes(report, shapes, family, tower, options)
    if sizes is None:
        return
    made = _openpi if is_openpi(config) else _lerobot
    fields = made(report, config, family, sizes, options, dict(overrides))
    if fields is None:
        return
    given = {name: value for name, value in overrides.items() if name != 'platform'}
    policy = report.override(PolicyConfig(**fields), given)
    report.config = policy
    entries = tensor_names.pi0_model(policy, lead, tower)
    words = f'{lead}{_V}language_model.embed_tokens.weight'
    if words not in found.shapes:  # stored once, under the name of the output matrix
        entries[f'{lead}{_X}paligemma.lm_head.weight'] = entries.pop(words)
    report.compare(entries, found.present, found.absent_names)


def _family(report: Report, config: Mapping[str, Any], shapes: Shapes) -> str | None:
    """pi0 or pi05, by the tensors; a mix of both and older layouts are refused."""
    where = report.path / shards.SINGLE
    old = [n for n in shapes if n.startswith(('normalize_', 'unnormalize_'))]
    old += [n for n in shapes if 'language_model.model.layers.' in n]
    if old:
        report.problem(
            f'{where}: {old[0]!r} is of lerobot before 0.4: convert the folder with '
            'lerobot/processor/migrate_policy_normalization.py'
        )
        return None
    adaptive = sorted(n for n in shapes if n.startswith('time_mlp_') or '.dense.' in n)
    plain = sorted(n for n in shapes if n.startswith(('action_time_mlp_', 'state_proj')))
    if bool(adaptive) == bool(plain):
        what = f'both {adaptive[0]!r} and {plain[0]!r}' if adaptive else 'neither time MLP'
        report.problem(f'{where}: holds {what}: this is neither pi0 nor pi0.5')
        return None
    family = 'pi05' if adaptive else 'pi0'
    if config.get('type', family) != family:
        report.problem(
            f'{where}: the tensors are those of {family} ({(adaptive or plain)[0]!r}), '
            f'config.json says {config["type"]}'
        )
        return None
    return family


def _tower_level(shapes: Shapes) -> str:
    level = 'vision_model.'
    return level if any(f'{_V}vision_tower.{level}' in name for name in shapes) else ''


def _sizes(
    report: Report, shapes: Shapes, family: str, tower: str, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Towers, decoder and flow from the tensors' shapes."""
    vision, words = f'{_V}vision_tower.{tower}', f'{_V}language_model.'
    expert = f'{_X}gemma_expert.model.'
    table = f'{words}embed_tokens.weight'
    table = table if table in shapes else f'{_X}paligemma.lm_head.weight'
    layer, mine = f'{words}layers.0.', f'{expert}layers.0.'
    names = {
        'kernel': f'{vision}embeddings.patch_embedding.weight',
        'positions': f'{vision}embeddings.position_embedding.weight',
        'fc1': f'{vision}encoder.layers.0.mlp.fc1.weight',
        'table': table,
        'q': f'{layer}self_attn.q_proj.weight',
        'k': f'{layer}self_attn.k_proj.weight',
        'gate': f'{layer}mlp.gate_proj.weight',
        'expert': f'{mine}mlp.gate_proj.weight',
        'rows': 'action_in_proj.weight',
    }
    lost = [name for name in names.values() if name not in shapes]
    if lost:
        report.problem(f'{report.path / shards.SINGLE}: lacks {lost[0]!r}; download it again')
        return None
    s = {key: shapes[name] for key, name in names.items()}
    heads = {**HEADS, **_given_heads(report, options)}
    head_dim = heads['head_dim'] or s['q'][0] // heads['heads']
    if head_dim * heads['heads'] != s['q'][0] or head_dim * heads['kv_heads'] != s['k'][0]:
        report.problem(
            f'{names["q"]}: {s["q"][0]} rows and {s["k"][0]} for keys are not {heads["heads"]} '
            f'heads and {heads["kv_heads"]} of {head_dim}; give them in sizes.json'
        )
        return None
    width = s['kernel'][0]
    vision_config = replace(
        SIGLIP_224,
        width=width,
        depth=count_layers(shapes, f'{vision}encoder.layers.'),
        heads=heads['vision_heads'] or SIGLIP_224.heads,
        mlp=s['fc1'][0],
        patch=s['kernel'][2],
        image_size=side(s['positions'][0]) * s['kernel'][2],
    )
    decoder = replace(
        PI0_3B.decoder,
        width=s['table'][1],
        depth=count_layers(shapes, f'{words}layers.'),
        heads=heads['heads'],
        kv_heads=heads['kv_heads'],
        head_size=head_dim,
        mlp=s['gate'][0],
        vocab=s['table'][0],
        embed_scale=s['table'][1] ** 0.5,
    )
    widths = replace(GEMMA_300M, width=s['expert'][1], mlp=s['expert'][0])
    flow = FlowConfig(expert=expert_of(decoder, widths, family), width=s['rows'][1])
    for name, config in (('tower', vision_config), ('decoder', decoder), ('expert', flow.expert)):
        report.fact(name, f'{config.depth} x {config.width}', 'tensor shapes')
    return {'towers': (vision_config,), 'decoder': decoder, 'flow': flow}


def _given_heads(report: Report, options: Mapping[str, Any]) -> dict[str, int]:
    """Head counts and sizes that were given, or stand in ``sizes.json``."""
    given: dict[str, int] = {}
    for folder in (report.path.resolve().parent, report.path):
        if (folder / 'sizes.json').is_file():
            data = read_json(folder / 'sizes.json')
            given |= {name: int(data[name]) for name in HEADS if name in data}
            report.fact('heads', given, str(folder / 'sizes.json'))
    return given | {name: int(options[name]) for name in HEADS if name in options}


def _lerobot(
    report: Report,
    config: Mapping[str, Any],
    family: str,
    sizes: dict[str, Any],
    options: Mapping[str, Any],
    overrides: dict[str, Any],
) -> dict[str, Any] | None:
    """The fields of a lerobot folder's policy, and its scales."""
    where = report.path / 'config.json'
    if overrides.pop('platform', None):
        report.problem(f'{where}: platform is for openpi folders; lerobot says what it needs')
    features = config.get('input_features') or {}
    cameras = tuple(
        name.removeprefix(_IMAGES)
        for name, feature in features.items()
        if feature.get('type') == 'VISUAL' and 'empty_camera_' not in name
    )
    action = (config.get('output_features') or {}).get('action', {}).get('shape')
    state = features.get('observation.state', {}).get('shape')
    if not cameras or not action or not state:
        report.problem(
            f'{where}: input_features must name cameras and observation.state, output_features '
            'action'
        )
        return None
    edge = sizes['towers'][0].image_size
    if list(config.get('image_resolution', [edge, edge])) != [edge, edge]:
        report.problem(
            f'{where}: image_resolution is {config["image_resolution"]}, the tower takes '
            f'[{edge}, {edge}]'
        )
    if (config.get('rtc_config') or {}).get('mode') == 'trained' and not config.get(
        'rtc_training_max_delay'
    ):
        report.problem(
            f'{where}: rtc_config.mode is trained, but rtc_training_max_delay is not set'
        )
    pre = _steps(report, 'policy_preprocessor.json')
    post = _steps(report, 'policy_postprocessor.json')
    if pre is None or post is None:
        return None
    aliases = _aliases(pre, cameras)
    texts = [step for step in pre if step['name'] == _STATE_TEXT]
    if family == 'pi05' and not texts:
        report.problem(f'{report.path}: the preprocessor does not put the state into the prompt')
    era = str(options.get('lerobot_era', '0.5'))
    if era not in ('0.4', '0.5'):
        report.problem(f"lerobot_era {era!r} is neither '0.4' nor '0.5'")
        return None
    padded = options.get('state_tokens', 'padded' if era == '0.4' else 'real')
    if padded not in ('real', 'padded'):
        report.problem(f"state_tokens {padded!r} is neither 'real' nor 'padded'")
        return None
    rope = options.get('rope', 'bf16' if config.get('dtype') == 'bfloat16' else 'exact')
    report.fact('rope', rope, 'given' if 'rope' in options else 'config.json, dtype')
    resize = {'0.4': 'pad_bilinear_04', '0.5': 'pad_bilinear'}[era]
    resize = options.get('image_resize', resize)
    report.fact('image resize', resize, f'lerobot {era}')
    report.scales = lerobot_scales(report, pre, post)
    report.statistics_keys = tuple(report.scales)
    numbers = _state_numbers(report, int(state[0]))
    relative = _relative(report, config, pre, int(action[0]), numbers)
    flow = replace(
        sizes['flow'],
        steps=int(config.get('num_inference_steps', 10)),
        min_period=float(config.get('min_period', 4e-3)),
        max_period=float(config.get('max_period', 4.0)),
        state='prompt' if family == 'pi05' else 'token',
        state_padded=padded == 'padded',
        relative=relative,
    )
    fields = {
        'action_dim': int(action[0]),
        'proprio_dim': numbers,
        'chunk': int(config.get('chunk_size', 50)),
        'execute': int(config.get('n_action_steps', 0)),
        'cameras': cameras,
        'max_prompt': int(config.get('tokenizer_max_length', 48 if family == 'pi0' else 200)),
    }
    for name, value in fields.items():
        own = name != 'proprio_dim' or value == int(state[0])
        report.fact(name, value, 'config.json' if own else "the normaliser's statistics")
    return _fields(
        report, family, sizes, flow, rope,
        {
            **fields,
            'camera_aliases': aliases,
            'template': 'pi05' if family == 'pi05' else 'pi0_lerobot',
            'resize': resize,
        },
        overrides,
    )  # fmt: skip


def _state_numbers(report: Report, declared: int) -> int:
    """Numbers of the state: a fine-tune that was started from a base keeps that one's
    ``input_features`` (32), while the statistics are its own data's.
    """
    bounds = [robot.get('proprio') for robot in report.scales.values()]
    lengths = {len(pair[0]) for pair in bounds if pair is not None}
    return min(declared, *lengths) if len(lengths) == 1 else declared


def _fields(
    report: Report,
    family: str,
    sizes: Mapping[str, Any],
    flow: FlowConfig,
    rope: str,
    known: dict[str, Any],
    overrides: dict[str, Any],
) -> dict[str, Any]:
    """All fields of the policy; what nobody says is assumed, and said."""
    fields = dict(known)
    if 'action' not in fields:
        word = 'action' if report.raw else 'joint'
        columns = tuple(f'{word}_{i + 1}' for i in range(fields['action_dim']))
        fields['action'] = plain_action(columns)
        if 'action' not in overrides and not report.raw:
            report.notes.append(
                'no file says what the action columns mean: they are taken for joint positions; '
                'give "action" in specprune.json where they are not'
            )
    if 'control_hz' not in (fields | overrides):
        report.notes.append(
            'no file says how many action rows are played per second: control_hz is taken as 20; '
            'give it in specprune.json'
        )
    decoder = replace(sizes['decoder'], rope=rope)
    return {
        'control_hz': 20.0,
        'family': family,
        'towers': sizes['towers'],
        'decoder': decoder,
        'flow': replace(flow, expert=replace(flow.expert, rope=rope)),
        'norm': 'min_max',
        'center_crop': False,
        'jpeg': False,
        'stop_id': 0,
        **fields,
    }


def _steps(report: Report, name: str) -> list[dict[str, Any]] | None:
    """A processor's steps in order: ``name``, ``config``, ``state_file``."""
    path = report.path / name
    if not path.exists():
        report.problem(f'{path} is absent: it says how values are scaled; download it')
        return None
    steps = []
    for step in read_json(path).get('steps', []):
        kind = step.get('registry_name') or step.get('class', '')
        known = (*_HARMLESS, *_RELATIVE, _STATE_TEXT, 'rename_observations_processor',
                 'normalizer_processor', 'unnormalizer_processor')  # fmt: skip
        if kind not in known:
            report.problem(f'{path}: step {kind!r} is not known and may change data')
            return None
        config = step.get('config') or {}
        steps.append({'name': kind, 'config': config, 'state_file': step.get('state_file')})
    return steps


def _aliases(pre: list[dict[str, Any]], cameras: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The robot's names of the cameras, where they differ from the policy's."""
    pairs = []
    for step in pre:
        renamed = step['config'].get('rename_map') or {}
        for theirs, ours in renamed.items():
            camera = ours.removeprefix(_IMAGES)
            if camera in cameras:
                pairs.append((theirs.removeprefix(_IMAGES), camera))
    return tuple(pairs)


def _relative(
    report: Report, config: Mapping[str, Any], pre: list[dict[str, Any]], action: int, state: int
) -> tuple[int, ...]:
    """Action columns that are offsets to the current state."""
    steps = [step['config'] for step in pre if step['name'] in _RELATIVE]
    on = any(step.get('enabled') for step in steps)
    if not on and not config.get('use_relative_actions'):
        return ()
    step = next((step for step in steps if step.get('enabled')), {})
    excluded = step.get('exclude_joints', config.get('relative_exclude_joints', ['gripper']))
    names = step.get('action_names') or config.get('action_feature_names')
    if excluded and not names:
        report.problem(
            f'{report.path}: actions are relative but for {excluded}, and no file names the '
            'action columns (action_feature_names)'
        )
        return ()
    names = names or [''] * action
    chosen = tuple(
        i
        for i, name in enumerate(names[: min(action, state)])
        if not any(word.lower() in name.lower() for word in excluded)
    )
    report.fact('relative', chosen, 'config.json')
    return chosen


def _openpi(
    report: Report,
    config: Mapping[str, Any],
    family: str,
    sizes: dict[str, Any],
    options: Mapping[str, Any],
    overrides: dict[str, Any],
) -> dict[str, Any] | None:
    """The fields of a converted openpi folder's policy, and its scales."""
    where = report.path / 'config.json'
    edge = sizes['towers'][0].image_size
    robots = openpi_scales(report, family)
    if not robots:
        return None
    report.scales = robots
    report.statistics_keys = tuple(robots)
    given = overrides.pop('platform', None)
    if given is not None and given not in ROBOTS:
        report.problem(f'platform {given!r} is none of {", ".join(ROBOTS)}')
        return None
    asset = choose_key(robots, report.requested_key, f'{report.path}: statistics')
    platform = given or _named(asset)
    constants = dict(ROBOTS.get(platform, {}))
    report.platform = platform
    if platform == 'droid' and not given and int(config['action_horizon']) not in _DROID_STEPS:
        report.platform = None
        report.problem(
            f'{where}: on DROID openpi trains on joint velocities or on joint positions, and no '
            f'file says which. The released pi0_droid and pi05_droid (action_horizon 10 and 15, '
            f'here {config["action_horizon"]}) give velocities. Give platform as droid '
            '(velocities) or droid_joint_position (positions, trained as offsets)'
        )
    report.fact('platform', platform or 'unknown', 'given' if given else f'assets/{asset}')
    report.reported = f'openpi, platform {platform}' if constants else ''
    if not constants:
        report.guess, report.raw = 'unknown', True
        report.notes.append(
            f'no file says what robot the statistics of {asset!r} are of: the actions are their '
            'raw numbers, which no executor takes (openpi trains most robots on offsets to the '
            f'state, as flow.relative says). Give platform as one of {", ".join(ROBOTS)}, or '
            'state what they mean in specprune.json'
        )
    robot, relative = constants.pop('robot', 'none'), constants.pop('relative', {}).get(family, ())
    state = constants.pop('state', {}).get(family, 'prompt' if family == 'pi05' else 'token')
    state = options.get('state', state)
    rope = options.get('rope', 'exact')
    report.fact('rope', rope, 'given' if 'rope' in options else 'trained in JAX')
    width = sizes['flow'].width

    def dim(part: str) -> int:
        return min(len(robots[asset][part][0]), width)

    known = {'action_dim': dim('action'), 'proprio_dim': dim('proprio'), 'cameras': CAMERAS}
    known |= constants
    if state == 'none':
        known['proprio_dim'] = 0
    report.fact('state', state, 'given' if 'state' in options else f'platform {platform}')
    known['chunk'] = int(config['action_horizon'])
    if int(config.get('action_dim', width)) != width:
        report.problem(f'{where}: action_dim is {config["action_dim"]}, the tensors say {width}')
    known['max_prompt'] = 48 if family == 'pi0' else 200
    known['template'] = 'pi05' if state == 'prompt' else 'pi0'
    known['resize'] = options.get('image_resize', 'pad_pillow')
    for name in ('action_dim', 'proprio_dim', 'chunk', 'cameras', 'resize'):
        source = 'given' if name in overrides else f'openpi, platform {platform}'
        report.fact(name, overrides.get(name, known[name]), source)
    if edge != 224:
        report.problem(f'{report.path}: the tower takes {edge} pixels, openpi resizes to 224')
    flow = replace(sizes['flow'], state=state, relative=relative, robot=robot)
    return _fields(report, family, sizes, flow, rope, known, overrides)


def _named(asset: str) -> str | None:
    """The platform that openpi's own assets of this name are of. Those of ALOHA go on with the
    task; what else goes on is a lab's own.
    """
    name = asset.rpartition('/')[2]
    for platform in ('aloha_sim', 'aloha'):
        if name.startswith(platform):
            return platform
    return name if name in ROBOTS else {'trossen': 'aloha'}.get(name)


def tokenizer(report: Report) -> Path | None:
    """PaliGemma's tokenizer in the folder; its absence is a problem."""
    path = find_tokenizer(report.path)
    if path is None:
        report.problem(
            f'{report.path / "tokenizer.json"} is absent, and so is tokenizer.model: no '
            f'checkpoint of pi0 has one; put into the folder {PLACES}'
        )
    return path
