"""A short measurement at start: which dtype makes this model faster on this machine."""

import time
from typing import Literal

import torch

from arcadia.config import TrainConfig
from arcadia.envs import EnvSpec
from arcadia.models.interface import build_model
from arcadia.threads import one_torch_thread

MAX_ROWS = 64


def fastest_dtype(config: TrainConfig, spec: EnvSpec) -> Literal["float32", "bfloat16"]:
    """Return "bfloat16" or "float32", whichever acts and learns faster (some tenths of a second).

    Times the acting passes and the learning pass of a short rollout, on one thread, the better of two, in processor
    time: runs that start together do not mislead each other. Models without convolutions are too small to gain, and the
    caller's own may not be made for bfloat16: float32. A GPU is taken to be of a kind that is faster in bfloat16
    (Ampere of 2020 or newer), so that only the workers' processes touch it.
    """
    if not config.model.is_convolutional:
        return "float32"
    if config.runtime.gpu_ids:
        return "bfloat16"
    with one_torch_thread():
        float32, bfloat16 = (_measure(config, spec, dtype) for dtype in (torch.float32, torch.bfloat16))
    return "bfloat16" if bfloat16 < float32 else "float32"


def _measure(config: TrainConfig, spec: EnvSpec, dtype: torch.dtype) -> float:
    num_envs = config.envs_per_worker
    num_steps = max(1, min(config.runtime.num_steps[0], MAX_ROWS // num_envs))
    model = build_model(config.model, spec, seed=0, dtype=dtype)
    observation = torch.rand(num_steps, num_envs, *model.input_shape).to(dtype)
    is_first = torch.zeros(num_steps, num_envs, dtype=torch.bool)
    state = model.initial_state(num_envs)
    seconds = []
    for _ in range(3):  # the first compiles kernels
        started = time.thread_time()
        with torch.no_grad():
            for t in range(num_steps):
                model(observation[t : t + 1], is_first[t : t + 1], state)
        output = model(observation, is_first, state)
        (output.policy.entropy().sum() + output.value.sum()).backward()
        seconds.append(time.thread_time() - started)
    return min(seconds[1:])
