"""From a rollout to a flat gradient."""

import math

import torch
from torch import Tensor

from arcadia.config import LossConfig
from arcadia.devices import GraphedFunction
from arcadia.loss import Targets, actor_critic_loss
from arcadia.models import ActorCritic, FlatParameters
from arcadia.types import Loss, Rollout


class Learner:
    """Backpropagates the loss of rollouts through a model, on the model's device.

    Args:
        model: its parameters are views of `parameters`.
        config: the loss.
    """

    def __init__(self, model: ActorCritic, parameters: FlatParameters, config: LossConfig) -> None:
        self._model, self._parameters, self._config = model, parameters, config
        self._groups = model.parameter_groups()
        self._run = GraphedFunction(self._backpropagate, model.device, as_graph=model.runs_as_graph)

    def compute_gradient(
        self, rollout: Rollout, targets: Targets, entropy_coefficient: float | None = None
    ) -> tuple[Tensor, Loss, float]:
        """Compute the gradient of one rollout.

        Args:
            rollout: T actions of B environments; its activations are of the model's parameters, or empty.
            targets: advantage and return of each row.
            entropy_coefficient: in place of the one in the config.

        Returns:
            gradient [P] float32, each of the model's parameter groups clipped to the norm `config.max_grad_norm` (in a
            buffer that the next call overwrites); the detached loss (likewise); the norm of the whole before clipping.
        """
        if entropy_coefficient is None:
            entropy_coefficient = self._config.entropy_coefficient
        coefficient = torch.full((), entropy_coefficient, device=self._model.device)
        loss: Loss = self._run(coefficient, *targets, *rollout.tensors(), *rollout.activations)
        gradient = self._parameters.gradient()
        norms = []
        for group in self._groups:
            norms.append(float(gradient[group].norm()))
            if norms[-1] > self._config.max_grad_norm:
                gradient[group].mul_(self._config.max_grad_norm / norms[-1])
        return gradient, loss, math.hypot(*norms)

    def _backpropagate(self, entropy_coefficient: Tensor, advantage: Tensor, return_: Tensor, *tensors: Tensor) -> Loss:
        """Write the flat gradient; return the detached loss. `tensors` are the rollout's."""
        rollout = Rollout.of(tensors)
        self._model.zero_grad()
        output = self._model(rollout.observation[:-1], rollout.is_first[:-1], rollout.state, rollout.activations)
        loss = actor_critic_loss(output, rollout, Targets(advantage, return_), self._config, entropy_coefficient)
        loss.total.backward()  # type: ignore[no-untyped-call]
        self._parameters.write_gradient()
        return Loss(*(part.detach() for part in loss))
