"""Space to depth: blocks of n x n pixels as single pixels of n * n times as many channels, and their convolution.

The stride of a convolution of n, 2n, ... pixels becomes 1, and its kernel one of few pixels with many channels, which
processors are faster at.
"""

import torch
from torch import Tensor, nn

NUMBERS = {2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}  # of so many bytes, only ever copied


def space_to_depth(images: Tensor, block_size: int, out: Tensor) -> None:
    """Write images [B, C, H, W] as `out` [B, H / n, W / n, C * n * n], with n = block_size and the channels in the
    order of torch's pixel_unshuffle. Both have the same dtype; `out` may be a part of larger blocks.
    """
    n = block_size
    batch, channels, height, width = images.shape
    rows, blocks = (batch, channels, height // n, n), (batch, height // n, width // n, channels, n)
    number = NUMBERS.get(n * images.itemsize)
    if number and _has_numbers_of(n, images) and _has_numbers_of(n, out):  # a block's row is one number: much faster
        out.view(number).view(blocks).copy_(images.view(number).view(*rows, -1).permute(0, 2, 4, 1, 3))
    else:
        out.view(*blocks, n).copy_(images.view(*rows, -1, n).permute(0, 2, 4, 1, 3, 5))


def _has_numbers_of(n: int, images: Tensor) -> bool:
    """Return whether n elements of a row are one number of the same memory: tensors may be laid out as they like."""
    *strides, step = images.stride()
    starts = (images.storage_offset(), *strides)
    return step == 1 and all(start % n == 0 for start in starts)


class SpaceToDepthConv2d(nn.Conv2d):
    """A convolution with stride n, of images in blocks of n x n pixels.

    Its weight is that of pixels; its stride and padding, 1 and 0, are those of blocks.

    Args:
        in_channels: C, of pixels.
        kernel_size: of pixels, a multiple of n.
        block_size: n.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, block_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size)
        self._block_size = block_size

    @property
    def kernel(self) -> Tensor:
        """The weight of blocks [out_channels, C * n * n, kernel_size / n, kernel_size / n]."""
        return nn.functional.pixel_unshuffle(self.weight, self._block_size)

    def forward(self, rows: Tensor) -> Tensor:
        """Return [N, out_channels, ...] for rows [N, C * n * n, H / n, W / n]."""
        return nn.functional.conv2d(rows, self.kernel, self.bias)
