"""Returns and advantages: pure functions, time-major, no gradient.

`discount[t]` = gamma * (1 - terminated[t]) weighs everything after step t. `trace[t]` = 1 - (terminated[t] |
truncated[t]) is 0 where step t was the last one played: a time limit ends the sum there, and the value of the final
observation, which is row t + 1, stands for what would have followed.
Rows that are not valid (resets) yield numbers of no meaning: mask them. They never leak into valid rows, because
the row before a reset has trace 0.
"""

import torch
from torch import Tensor


def _check(reward: Tensor, value: Tensor, discount: Tensor, trace: Tensor) -> None:
    if reward.dim() != 2:
        raise ValueError(f"reward must be [T, B], got shape {tuple(reward.shape)}")
    num_steps, num_envs = reward.shape
    if value.shape != (num_steps + 1, num_envs):
        raise ValueError(f"value must be [T+1, B] = {(num_steps + 1, num_envs)}, got {tuple(value.shape)}")
    for name, tensor in (("discount", discount), ("trace", trace)):
        if tensor.shape != reward.shape:
            raise ValueError(f"{name} must be [T, B] = {tuple(reward.shape)}, got {tuple(tensor.shape)}")


def n_step_returns(reward: Tensor, value: Tensor, discount: Tensor, trace: Tensor) -> Tensor:
    """Compute the longest n-step return that a rollout allows for each row.

    R[t] = reward[t] + discount[t] * (R[t+1] if trace[t] else value[t+1]), R[T] = value[T]
    (Mnih et al. 2016, arXiv:1602.01783, algorithm S3).

    Args:
        reward: [T, B] float32.
        value: [T+1, B] float32, row T being the bootstrap.
        discount: [T, B] float32.
        trace: [T, B] float32, 0 or 1.

    Returns:
        [T, B] float32.

    Raises:
        ValueError: shapes disagree.
    """
    _check(reward, value, discount, trace)
    returns = torch.empty_like(reward)
    following = value[-1]
    for t in reversed(range(len(reward))):
        following = torch.where(trace[t] > 0, following, value[t + 1])
        following = reward[t] + discount[t] * following
        returns[t] = following
    return returns


def gae(reward: Tensor, value: Tensor, discount: Tensor, trace: Tensor, gae_lambda: float) -> Tensor:
    """Compute generalized advantage estimates (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

    delta[t] = reward[t] + discount[t] * value[t+1] - value[t]
    A[t] = delta[t] + discount[t] * gae_lambda * trace[t] * A[t+1]

    With gae_lambda = 1 this is the n-step return minus the value.

    Args:
        reward: [T, B] float32.
        value: [T+1, B] float32.
        discount: [T, B] float32.
        trace: [T, B] float32, 0 or 1.
        gae_lambda: in [0, 1].

    Returns:
        [T, B] float32.

    Raises:
        ValueError: shapes disagree.
    """
    _check(reward, value, discount, trace)
    delta = reward + discount * value[1:] - value[:-1]
    decay = discount * trace * gae_lambda
    advantages = torch.empty_like(reward)
    advantage = torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        advantage = delta[t] + decay[t] * advantage
        advantages[t] = advantage
    return advantages


def discounted_sums(reward: Tensor, start: Tensor, trace: Tensor, gamma: float, *, out: Tensor) -> Tensor:
    """Write the discounted sum of each episode's rewards up to every row into `out` [T, B].

    G[t] = reward[t] + gamma * trace[t-1] * G[t-1], the weight of a reward falling with its age.

    Args:
        reward: [T, B] float32.
        start: [B], what the last call returned; zeros at first.
        trace: [T, B] float32, 0 where an episode ended.
        gamma: discount.

    Returns:
        [B], what the last row leaves to the next.
    """
    carried = start
    for t in range(len(reward)):
        out[t] = reward[t] + carried
        carried = torch.where(trace[t] > 0, gamma * out[t], 0.0)  # a NaN ends with its episode
    return carried
