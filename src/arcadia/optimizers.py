"""Optimizers over one flat vector, with state that processes can share."""

from typing import Any

import torch
from torch import Tensor

from arcadia.config import OptimizerConfig


class PaperRMSProp(torch.optim.Optimizer):
    """RMSProp of the A3C paper (Mnih et al. 2016, arXiv:1602.01783, eq. S2 and S3): no momentum.

    g <- alpha * g + (1 - alpha) * grad^2;  theta <- theta - lr * grad / sqrt(g + epsilon)

    torch.optim.RMSprop adds epsilon outside the root; with the paper's large epsilon that is another algorithm.
    """

    def __init__(self, parameters: list[Tensor], lr: float, alpha: float, epsilon: float) -> None:
        super().__init__(parameters, {"lr": lr, "alpha": alpha, "epsilon": epsilon})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Apply one step to every parameter."""
        for group in self.param_groups:
            for parameter in group["params"]:
                square_avg = self.state[parameter]["square_avg"]
                gradient = parameter.grad
                square_avg.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
                root = (square_avg + group["epsilon"]).sqrt_()
                parameter.addcdiv_(gradient, root, value=-group["lr"])


def init_optimizer_state(config: OptimizerConfig, size: int, num_copies: int) -> dict[str, Tensor]:
    """Return zeroed optimizer state: name -> [num_copies, P] or [num_copies] float32.

    Args:
        size: P.
        num_copies: 1 for shared statistics, the number of workers for private ones.
    """
    if config.optimizer == "rmsprop":
        return {"square_avg": torch.zeros(num_copies, size)}
    names = ["exp_avg", "exp_avg_sq"]
    if config.optimizer == "amsgrad":
        names.append("max_exp_avg_sq")
    state = {name: torch.zeros(num_copies, size) for name in names}
    return state | {"step": torch.zeros(num_copies)}


def build_optimizer(config: OptimizerConfig, parameters: Tensor, state: dict[str, Tensor]) -> torch.optim.Optimizer:
    """Build an optimizer that steps `parameters` [P] in place, on statistics that exist already.

    Args:
        parameters: [P] float32, usually in shared memory.
        state: name -> tensor, views of shared memory ([P], and [] for the step count).
    """
    optimizer: torch.optim.Optimizer
    if config.optimizer == "rmsprop":
        optimizer = PaperRMSProp([parameters], config.lr, config.alpha, config.epsilon)
    else:
        optimizer = torch.optim.Adam(
            [parameters],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            amsgrad=config.optimizer == "amsgrad",
            fused=True,  # one pass over memory; steps in place
        )
    optimizer.state[parameters] = dict(state)
    return optimizer
