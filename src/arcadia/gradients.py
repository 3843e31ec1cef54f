"""From a rollout to a flat gradient."""

import math

from torch import Tensor

from arcadia.config import LossConfig
from arcadia.loss import Targets, actor_critic_loss
from arcadia.models import ActorCritic, FlatParameters
from arcadia.types import Loss, Rollout


def compute_gradient(
    model: ActorCritic,
    parameters: FlatParameters,
    rollout: Rollout,
    targets: Targets,
    config: LossConfig,
) -> tuple[Tensor, Loss, float]:
    """Backpropagate the loss of one rollout through the model.

    Args:
        model: its parameters are views of `parameters`.
        rollout: T actions of B environments; its activations are of these parameters, or empty.
        targets: advantage and return of each row.

    Returns:
        gradient [P] float32, each of the model's parameter groups clipped to the norm `config.max_grad_norm` (in a
        buffer that the next call overwrites); the detached loss; the norm of the whole before clipping.
    """
    parameters.zero_gradient()
    output = model(rollout.observation[:-1], rollout.is_first[:-1], rollout.state, rollout.activations)
    loss = actor_critic_loss(output, rollout, targets, config)
    loss.total.backward()  # type: ignore[no-untyped-call]
    gradient = parameters.gradient()
    norms = []
    for group in model.parameter_groups():
        norms.append(float(gradient[group].norm()))
        if norms[-1] > config.max_grad_norm:
            gradient[group].mul_(config.max_grad_norm / norms[-1])
    return gradient, Loss(*(part.detach() for part in loss)), math.hypot(*norms)
