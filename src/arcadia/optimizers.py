"""Optimizers over one flat vector, with state that processes can share.

Functions, not torch.optim's classes: those import the compiler of PyTorch as they are built, seconds for each worker.
"""

import torch
from torch import Tensor
from torch.optim.adam import adam

from arcadia.config import OptimizerConfig


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


@torch.no_grad()
def apply_gradient(
    parameters: Tensor, gradient: Tensor, state: dict[str, Tensor], config: OptimizerConfig, lr: float
) -> None:
    """Step `parameters` in place.

    Args:
        parameters, gradient: [P] float32, the former usually in shared memory.
        state: name -> tensor, as `init_optimizer_state` names them: [P], and [] for the step count. It changes too.
    """
    if config.optimizer == "rmsprop":
        _paper_rmsprop(parameters, gradient, state["square_avg"], lr, config.alpha, config.epsilon)
        return
    largest = [state["max_exp_avg_sq"]] if config.optimizer == "amsgrad" else []
    adam(
        [parameters],
        [gradient],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        largest,
        [state["step"]],
        fused=True,  # one pass over memory
        amsgrad=bool(largest),
        beta1=config.beta1,
        beta2=config.beta2,
        lr=lr,
        weight_decay=0.0,
        eps=config.epsilon,
        maximize=False,
    )


def _paper_rmsprop(
    parameters: Tensor, gradient: Tensor, square_avg: Tensor, lr: float, alpha: float, epsilon: float
) -> None:
    """RMSProp of the A3C paper (Mnih et al. 2016, arXiv:1602.01783, eq. S2 and S3): no momentum.

    g <- alpha * g + (1 - alpha) * grad^2;  theta <- theta - lr * grad / sqrt(g + epsilon)

    torch.optim.RMSprop adds epsilon outside the root; with the paper's large epsilon that is another algorithm.
    """
    square_avg.mul_(alpha).addcmul_(gradient, gradient, value=1 - alpha)
    root = (square_avg + epsilon).sqrt_()
    parameters.addcdiv_(gradient, root, value=-lr)
