"""From a rollout to a flat gradient."""

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
        rollout: T actions of B environments.
        targets: advantage and return of each row.

    Returns:
        gradient [P] float32, clipped to the global norm `config.max_grad_norm` (in a buffer that the next call
        overwrites); the detached loss; the norm before clipping.
    """
    parameters.zero_gradient()
    output = model(rollout.observation[:-1], rollout.is_first[:-1], rollout.state)
    loss = actor_critic_loss(output, rollout, targets, config)
    loss.total.backward()  # type: ignore[no-untyped-call]
    gradient = parameters.gradient()
    norm = float(gradient.norm())
    if norm > config.max_grad_norm:
        gradient.mul_(config.max_grad_norm / norm)
    return gradient, Loss(*(part.detach() for part in loss)), norm
