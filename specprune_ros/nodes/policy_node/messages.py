"""From a policy's result to ``ActionChunk`` and ``PruneStats``."""

from __future__ import annotations

import array
import math
from dataclasses import replace

from builtin_interfaces.msg import Duration
from std_msgs.msg import Header

from specprune_ros.models import conventions
from specprune_ros.models.config import PolicyConfig
from specprune_ros.msg import ActionChunk, PruneStats
from specprune_ros.nodes.common.time import SECOND_NS, time_message
from specprune_ros.nodes.policy_node.publisher import QueryEvent
from specprune_ros.policy.result import PolicyResult
from specprune_ros.pruning.interface import Mode

KINDS = {
    'ee_delta': ActionChunk.KIND_EE_DELTA,
    'ee_pose': ActionChunk.KIND_EE_POSE,
    'joint_position': ActionChunk.KIND_JOINT_POSITION,
    'joint_delta': ActionChunk.KIND_JOINT_DELTA,
}
ROTATIONS = {
    'none': ActionChunk.ROTATION_NONE,
    'vector': ActionChunk.ROTATION_VECTOR,
    'euler_xyz': ActionChunk.ROTATION_EULER_XYZ,
    'quaternion': ActionChunk.ROTATION_QUATERNION,
}
REFERENCES = {
    'none': ActionChunk.REFERENCE_NONE,
    'previous_step': ActionChunk.REFERENCE_PREVIOUS_STEP,
    'observation': ActionChunk.REFERENCE_OBSERVATION,
}
SENSES = {
    'one_is_open': ActionChunk.GRIPPER_ONE_IS_OPEN,
    'one_is_closed': ActionChunk.GRIPPER_ONE_IS_CLOSED,
}
MODES = {
    Mode.DENSE: PruneStats.MODE_DENSE,
    Mode.COARSE: PruneStats.MODE_COARSE,
    Mode.FINE: PruneStats.MODE_FINE,
    Mode.SKIPPED: PruneStats.MODE_SKIPPED,
}


def chunk_message(
    event: QueryEvent, config: PolicyConfig, header: Header, sequence: int, whole: bool = False
) -> ActionChunk:
    """The chunk as published: actions in SI units, with everything needed to read them.

    ``whole``: every row, also those that the authors leave to the next query.
    """
    result, action, step_dt = event.result, config.action, 1.0 / config.control_hz
    played = replace(config, execute=0) if whole else config
    actions = conventions.for_robot(played, result.actions)
    horizon = len(actions)
    elapsed = math.floor((event.end_ns - event.observation.stamp_ns) / SECOND_NS / step_dt)
    seconds, rest = divmod(round(step_dt * SECOND_NS), SECOND_NS)
    return ActionChunk(
        header=header,
        sequence=sequence,
        episode=result.episode,
        instruction=event.observation.instruction,
        step_dt=Duration(sec=seconds, nanosec=rest),
        horizon=horizon,
        dims=list(action.dims),
        kind=KINDS[action.kind],
        rotation=ROTATIONS[action.rotation],
        reference=REFERENCES[action.reference],
        data=array.array('d', actions.ravel()),
        gripper_dim=action.gripper_dim,
        gripper_sense=SENSES[action.gripper_sense],
        inference_begin=time_message(event.begin_ns),
        inference_end=time_message(event.end_ns),
        first_valid_step=min(max(elapsed, 0), horizon),
        params_version=result.params_version,
    )


def stats_message(result: PolicyResult, header: Header, sequence: int, frame: str) -> PruneStats:
    """The account of one query as published."""
    speed, tokens, times = result.speed, result.tokens, result.times
    k_global, k_local, k_dynamic = result.budgets
    deviation = result.action_deviation
    return PruneStats(
        header=header,
        sequence=sequence,
        episode=result.episode,
        params_version=result.params_version,
        pruner=result.pruner,
        mode=MODES[result.mode],
        reason=result.reason,
        speed_translation=_or_nan(speed and speed.v_t),
        speed_rotation=_or_nan(speed and speed.v_r),
        speed_vertical=_or_nan(speed and speed.dz),
        speed_source=speed.source if speed else 'none',
        speed_age=_or_nan(speed and speed.age_s),
        speed_frame=frame if speed else '',
        threshold_translation=result.thresholds.v_t,
        threshold_rotation=result.thresholds.v_r,
        tokens_in=tokens.total,
        tokens_global=tokens.sets.get('global', 0),
        tokens_dynamic=tokens.sets.get('dynamic', 0),
        tokens_local=tokens.sets.get('local', 0),
        tokens_union=tokens.union,
        prune_layers=list(tokens.layers),
        tokens_after=list(tokens.after),
        tokens_mean=tokens.mean,
        alpha=result.alpha,
        k_global=k_global,
        k_local=k_local,
        k_dynamic=k_dynamic,
        history_steps=-1 if result.history_steps is None else result.history_steps,
        history_age=_or_nan(result.history_age),
        history_unit=result.thresholds.history_unit,
        prior_valid=result.prior_valid,
        prior_recall=_or_nan(result.prior_recall),
        flops=result.flops,
        flops_ratio=result.flops_ratio,
        refreshes=result.refreshes.done,
        refreshes_given_up=result.refreshes.given_up,
        refresh_flops=result.refreshes.flops,
        refresh_time=result.refreshes.seconds,
        time_preprocess=times.preprocess,
        time_vision=times.vision,
        time_decoder=times.decoder,
        time_head=times.head,
        time_total=times.total,
        device=result.device,
        action_deviation=[] if deviation is None else [float(value) for value in deviation],
        kept_recall=_or_nan(result.kept_recall),
        notes=list(result.notes),
    )


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
