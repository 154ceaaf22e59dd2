"""Copy a permuted view of a large tensor fast.

``Tensor.copy_`` moves a permuted tensor element by element, which takes many times as long as moving the same bytes in
order. PyTorch has no transposition for the CPU that is both vectorised and writes into a given tensor, but
``torch.channel_shuffle`` is vectorised: it views the channels of each pixel as a matrix (groups, channels / groups) and
transposes it, and with the channels last in memory such a matrix is contiguous. So a block of whole rows is transposed,
within the cache, and goes to its place.
"""

import torch
from torch import Tensor

# The fewest elements of a tensor that is copied in blocks. For a smaller one, blocks cost more than they save.
_WORTHWHILE = 2**17
# The elements of a block: 1 MB of float32, which stays in the cache with its transpose.
_BLOCK = 2**18
# The most elements of a block. A block has at least one input channel of all pixels. It needs twice its size in memory.
_LARGEST_BLOCK = 2**20
# The fewest rows of a block. With fewer, the runs in the target are so short that they cost more than they save.
_LEAST_ROWS = 16
# The pixels of a block: PyTorch shares them out among its threads.
_PIXELS = 2


def copy_permuted(source: Tensor, target: Tensor) -> None:
    """Do ``target.copy_(source)``, and fast if axis 0 of the source is its last in memory.

    Args:
        source: A view (o, i, *spatial), of a tensor whose last axis in memory is o: the kernel of a Keras layer, its
            axes in PyTorch's order.
        target: A tensor of the same shape. It keeps its dtype and device.
    """
    if _in_blocks(source, target):
        _copy_blocks(source, target)
    else:
        target.copy_(source)


def _in_blocks(source: Tensor, target: Tensor) -> bool:
    """Tell whether blocks are faster; only float32 has a vectorised transposition."""
    return (
        source.dtype == torch.float32
        and source.device.type == target.device.type == "cpu"
        and source.shape == target.shape
        and source.ndim > 1
        and source.numel() >= _WORTHWHILE
        and source.stride(0) == 1
        and len(source) * _LEAST_ROWS <= _BLOCK
        and len(source) * source[0, 0].numel() <= _LARGEST_BLOCK
        and target.is_contiguous()
    )


def _copy_blocks(source: Tensor, target: Tensor) -> None:
    """Copy blocks of whole rows, in the target's order, of the matrix (i * spatial, o)."""
    rows = source.movedim(0, -1)  # (i, *spatial, o)
    matrix = target.flatten(1)  # (o, i * spatial)
    outputs, spatial = len(source), source[0, 0].numel()
    step = max(1, _BLOCK // (spatial * outputs))
    buffer = torch.empty(min(step, len(rows)) * spatial * outputs)
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        if not block.is_contiguous():
            block = buffer[: block.numel()].view(block.shape).copy_(block)
        height = len(block) * spatial
        pixels = _PIXELS if height % _PIXELS == 0 else 1
        shuffled = torch.channel_shuffle(block.view(1, 1, pixels, -1).permute(0, 3, 1, 2), height // pixels)
        transposed = shuffled.permute(0, 2, 3, 1).reshape(pixels, outputs, -1)
        columns = matrix[:, start * spatial : start * spatial + height]
        columns.unflatten(1, (pixels, -1)).movedim(1, 0).copy_(transposed)
