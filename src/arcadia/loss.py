"""The actor-critic loss."""

from typing import NamedTuple

import torch
from torch import Tensor

from arcadia.config import LossConfig
from arcadia.devices import send
from arcadia.returns import gae, n_step_returns
from arcadia.types import Loss, ModelOutput, Rollout


class Targets(NamedTuple):
    """What a rollout teaches; fixed over all passes."""

    advantage: Tensor  # [T, B] float32
    return_: Tensor  # [T, B] float32

    def to(self, device: torch.device) -> "Targets":
        """Return the targets on `device`."""
        return Targets(*(send(target, device) for target in self))

    def environments(self, index: Tensor) -> "Targets":
        """Return the targets of the environments in `index` ([b] int64) only."""
        return Targets(*(target[:, index] for target in self))


@torch.no_grad()
def compute_targets(rollout: Rollout, config: LossConfig) -> Targets:
    """Compute advantages and returns from the values predicted while acting. No gradient."""
    discount = config.gamma * (~rollout.terminated).float()  # [T, B]
    trace = (~(rollout.terminated | rollout.truncated)).float()  # [T, B]
    if config.advantage == "n_step":
        return_ = n_step_returns(rollout.reward, rollout.value, discount, trace)
        advantage = return_ - rollout.value[:-1]
    else:
        advantage = gae(rollout.reward, rollout.value, discount, trace, config.gae_lambda)
        return_ = advantage + rollout.value[:-1]
    chosen = advantage[rollout.valid & ~rollout.forced]
    if config.normalize_advantage and len(chosen) > 1:  # of a single one nothing would be left
        advantage = (advantage - chosen.mean()) / (chosen.std(correction=0) + 1e-8)
    return Targets(advantage, return_)


def actor_critic_loss(
    output: ModelOutput,
    rollout: Rollout,
    targets: Targets,
    config: LossConfig,
    entropy_coefficient: Tensor | None = None,
) -> Loss:
    """Compute the A3C loss (Mnih et al. 2016, arXiv:1602.01783, section 4) over valid rows.

    policy = -log pi(a|s) * advantage; with a clip_range, PPO's clipped surrogate instead (Schulman et al. 2017,
    arXiv:1707.06347, eq. 7), whose gradient at ratio 1 is the same.
    value = (return_ - V(s))^2;  total = policy + value_coefficient * value - entropy_coefficient * entropy.

    Gradient flows through `output` alone. The value is learned on valid rows, policy and entropy on those whose action
    was the policy's own. Each part is reduced as `config.reduction` says: "mean" over its rows, or "sum_over_steps":
    summed over T and averaged over B.

    Args:
        output: policy and value [T, B] of the first T rows.
        rollout: T actions.
        targets: advantage, return_ [T, B].
        entropy_coefficient: [] float32, in place of the one in `config`.

    Raises:
        ValueError: shapes disagree.
    """
    if output.value.shape != rollout.valid.shape:
        raise ValueError(f"output covers rows {tuple(output.value.shape)}, rollout {tuple(rollout.valid.shape)}")
    log_prob = output.policy.log_prob(rollout.action)  # [T, B]
    entropy = output.policy.entropy()  # [T, B]
    advantage = targets.advantage
    if config.clip_range is None:
        policy = -log_prob * advantage
        clipped = torch.zeros_like(rollout.valid)
    else:
        ratio = (log_prob - rollout.log_prob.detach()).exp()
        bounded = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
        policy = -torch.minimum(ratio * advantage, bounded * advantage)
        clipped = ratio != bounded

    chosen = rollout.valid & ~rollout.forced

    def reduce(row: Tensor, rows: Tensor) -> Tensor:
        scale = rows.sum().clamp(min=1) if config.reduction == "mean" else rows.shape[1]
        return (row * rows).sum() / scale

    policy_loss = reduce(policy, chosen)
    value_loss = reduce((targets.return_ - output.value).square(), rollout.valid)
    mean_entropy = reduce(entropy, chosen)
    weight = config.entropy_coefficient if entropy_coefficient is None else entropy_coefficient
    total = policy_loss + config.value_coefficient * value_loss - weight * mean_entropy
    clip_fraction = (clipped & chosen).sum() / chosen.sum().clamp(min=1)
    return Loss(total, policy_loss, value_loss, mean_entropy, clip_fraction)
