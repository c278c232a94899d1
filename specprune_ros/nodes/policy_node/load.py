"""The policy that the node's parameters name: loaded or reached, checked and warm."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from specprune_ros.nodes.common.realtime import freeze_gc
from specprune_ros.nodes.common.remapping import ALLOWED, REFUSED
from specprune_ros.nodes.policy_node import chunk_continuation
from specprune_ros.nodes.policy_node.parameters import check_proprio
from specprune_ros.pruning.params import PruningParams
from specprune_ros.serving.client import RemotePolicy
from specprune_ros.serving.protocol import KEY_VARIABLE

if TYPE_CHECKING:
    from specprune_ros.policy.policy import Policy


def load(
    values: Mapping[str, Any], params: PruningParams, logger: Any
) -> tuple[Policy | RemotePolicy, float]:
    """The policy of these parameter values, and the seconds of a query once it is warm.

    Raises what loading and connecting raise, and ``ValueError`` where it does not fit the inputs,
    or where a server's weights may be random and the parameters do not allow that.
    """
    if values['model.server']:
        timeout = values['model.server_timeout']
        key = os.environ.get(KEY_VARIABLE, '')  # not a parameter: those everybody can read
        remote = RemotePolicy(values['model.server'], key, params, timeout, timeout)
        if remote.random_weights and values['model.random_weights'] == REFUSED:
            remote.close()
            raise ValueError(
                f'{remote.url}: its weights are random, or its version is too old to say; that is '
                'refused on this robot, as such actions would move the arm at random. Serve a '
                'checkpoint (specprune serve FOLDER); to try the wiring, in a dry run, set '
                f"model.random_weights (launch: random_weights) to '{ALLOWED}'"
            )
        return remote, _make_ready(remote, values, params, logger)
    from specprune_ros.bench.calibration import calibrator
    from specprune_ros.policy.build import build_policy, resolve
    from specprune_ros.policy.device import check_alive, explain

    device: Any = values['model.device']
    try:
        device, _ = resolve(values['model.device'], values['model.dtype'])
        check_alive(device)
        policy = build_policy(
            path=values['model.path'],
            preset=values['model.preset'],
            seed=values['model.seed'],
            device=values['model.device'],
            dtype=values['model.dtype'],
            unnorm_key=values['model.unnorm_key'],
            threads=values['model.threads'],
            platform=values['model.platform'],
            fast_images=values['model.fast_images'],
            params=params,
            graphs=values['model.cuda_graphs'],
            calibrate=calibrator(values['model.calibrate'], logger),
            fp8=values['model.fp8'],
        )
        return policy, _make_ready(policy, values, params, logger)
    except Exception as error:
        meaning = explain(error, device)
        if meaning is None:
            raise
        raise meaning from error


def _make_ready(
    policy: Policy | RemotePolicy, values: Mapping[str, Any], params: PruningParams, logger: Any
) -> float:
    """Check the policy against the inputs and run two queries; closed where that fails."""
    for note in policy.notes:
        logger.info(note)
    try:
        policy.max_normalised_action = values['max_normalised_action']
        policy.measure_deviation = values['measure.action_deviation']
        policy.check_cameras(values['cameras'])
        if bool(policy.config.proprio_dim) != (values['proprio.layout'] != 'none'):
            raise ValueError(
                f"proprio.layout is '{values['proprio.layout']}', but the model reads "
                f'{policy.config.proprio_dim} numbers of proprioception'
            )
        check_proprio(policy.config.proprio_dim, values)
        policy.check_params(params)
        chunk_continuation.check(values, policy)
        seconds = policy.warm_up(values['instruction'] or 'warm up')
    except BaseException:
        policy.close()
        raise
    freeze_gc()  # a query must not wait for a walk through PyTorch's modules
    logger.info(f'warm: a query takes {1e3 * seconds:.1f} ms')
    return seconds
