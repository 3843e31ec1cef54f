"""Settings of all tests."""

import torch

torch.set_num_threads(1)  # small tensors: threads only cost time, most of all on a busy machine
