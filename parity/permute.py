"""Copy a permuted view of a large tensor fast.

``Tensor.copy_`` moves a permuted tensor element by element, which takes many times as long as moving the same bytes in
order. PyTorch has no transposition for the CPU that is both vectorised and writes into a given tensor, but
``torch.channel_shuffle`` is vectorised: it views the channels of each pixel as a matrix (groups, channels / groups) and
transposes it, and with the channels last in memory such a matrix is contiguous. So a block of rows goes into a buffer,
is transposed there, within the cache, and goes to its place in long runs.
"""

import torch
from torch import Tensor

# The elements from which blocks pay; below, they cost more than they save.
_WORTHWHILE = 2**17
# The size of a block: long runs in the target, and 2 MB of float32, which stay in the cache.
_BLOCK_ROWS = 2048
_BLOCK_COLUMNS = 256
# The pixels of a block, at least one for each thread: PyTorch shares the work out by pixels.
_PIXELS = 8


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
        and source[0, 0].numel() <= _BLOCK_ROWS
        and target.is_contiguous()
    )


def _copy_blocks(source: Tensor, target: Tensor) -> None:
    """Copy blocks of rows, in the target's order, and columns of the matrix (i * spatial, o)."""
    rows = source.movedim(0, -1)  # (i, *spatial, o)
    matrix = target.flatten(1)  # (o, i * spatial)
    spatial = source[0, 0].numel()
    step = _BLOCK_ROWS // spatial
    buffer = torch.empty(min(step, len(rows)) * spatial * min(_BLOCK_COLUMNS, len(matrix)))
    for i in range(0, len(rows), step):
        strip = rows[i : i + step]
        height = len(strip) * spatial
        for o in range(0, len(matrix), _BLOCK_COLUMNS):
            part = strip[..., o : o + _BLOCK_COLUMNS]
            width = part.shape[-1]
            pixels = _PIXELS if width % _PIXELS == 0 else 1
            # Each pixel takes some of the columns: (pixels, i, *spatial, columns).
            part = part.unflatten(-1, (pixels, -1)).movedim(-2, 0)
            block = buffer[: height * width]
            block.view(part.shape).copy_(part)
            shuffled = torch.channel_shuffle(block.view(1, 1, pixels, -1).permute(0, 3, 1, 2), height)
            transposed = shuffled.permute(0, 2, 3, 1).reshape(width, height)
            matrix[o : o + width, i * spatial : i * spatial + height].copy_(transposed)
