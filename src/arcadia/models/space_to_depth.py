"""Space to depth: blocks of n x n pixels as single pixels of n * n times as many channels, and their convolution.

The stride of a convolution of n, 2n, ... pixels becomes 1, and its kernel one of few pixels with many channels, which
processors are faster at.
"""

import torch
from torch import Tensor, nn


def space_to_depth(images: Tensor, block_size: int) -> Tensor:
    """Return images [B, C, H, W] as [B, H / n, W / n, C * n * n], with n = block_size and the channels in the order of
    torch's pixel_unshuffle.
    """
    if block_size == 1:
        return images.movedim(1, -1)  # pixel_unshuffle would copy, slowly
    batch, channels, height, width = images.shape
    if block_size == 4 and _has_rows_of_int32(images):  # a block's row is one number: much faster
        rows = images.view(torch.int32).view(batch, channels, height // 4, 4, width // 4)
        blocks = rows.permute(0, 2, 4, 1, 3).contiguous().view(torch.uint8)
        return blocks.view(batch, height // 4, width // 4, channels * 16)
    return nn.functional.pixel_unshuffle(images, block_size).movedim(1, -1)


def _has_rows_of_int32(images: Tensor) -> bool:
    """Return whether four bytes of a row are one int32 of the same memory: arrays may be laid out as they like."""
    *strides, step = images.stride()
    starts = (images.storage_offset(), *strides)
    return images.dtype == torch.uint8 and step == 1 and all(start % 4 == 0 for start in starts)


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
