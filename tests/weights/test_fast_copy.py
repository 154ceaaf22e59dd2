"""A permuted copy in blocks is bit for bit what ``copy_`` does, whatever the shape."""

from itertools import product

from parity.weights import fast_copy as permute
from parity.weights.fast_copy import copy_permuted

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
LAYOUTS = ["dense", "convolution", "flatten"]


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Let small tensors have several blocks, and remainders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permute, "_WORTHWHILE", 1)
        patch.setattr(permute, "_BLOCK", 96)
        patch.setattr(permute, "_LEAST_ROWS", 1)
        patch.setattr(permute, "_LARGEST_BLOCK", 384)
        yield


def bits(tensor: Tensor) -> Tensor:
    """View the values as integers, which tell -0 from 0 and one NaN from another."""
    return tensor.contiguous().view(BITS[tensor.itemsize])


def view(layout: str, spatial: tuple[int, ...], i: int, o: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Return a view (o, i, *spatial) of a random tensor laid out as Keras does, with a few special values in it."""
    shape = (i, o) if layout == "dense" else (*spatial, i, o)
    kernel = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    special = torch.tensor([-0.0, 0.0, torch.finfo(dtype).tiny, -torch.finfo(dtype).max], dtype=dtype)
    kernel.view(-1)[:: len(special) + 1] = special[seed % len(special)]
    *rest, a, b = range(len(shape))
    return kernel.permute(b, a, *rest)


def check(source: Tensor, target: Tensor) -> None:
    """Copy into the target, and compare with ``copy_`` into its like."""
    due = target.clone()
    due.copy_(source)
    copy_permuted(source, target)
    assert torch.equal(bits(target), bits(due))


@given(
    layout=st.sampled_from(LAYOUTS),
    spatial=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    i=st.integers(1, 20),
    o=st.integers(1, 20),
    source_dtype=st.sampled_from(DTYPES),
    target_dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=100)
def test_any_shape(layout, spatial, i, o, source_dtype, target_dtype, seed):
    source = view(layout, spatial, i, o, source_dtype, seed)
    flat = torch.full((o, source[0].numel()), torch.nan, dtype=target_dtype)
    check(source, flat.unflatten(1, source.shape[1:]) if layout == "flatten" else flat.view(source.shape))


@pytest.mark.parametrize(("i", "o"), list(product([11, 12, 25], [7, 8, 18])))
def test_edges_of_the_blocks(i, o):
    for spatial in ((), (2, 3), (12,), (13,)):
        source = view("convolution" if spatial else "dense", spatial, i, o, torch.float32, 0)
        check(source, torch.full(source.shape, torch.nan))


def test_targets_that_are_not_contiguous():
    check(view("dense", (), 25, 18, torch.float32, 0), torch.full((18, 25, 2), torch.nan)[..., 0])
    source = view("convolution", (2, 3), 25, 18, torch.float32, 0)
    check(source, torch.full(source.shape, torch.nan).to(memory_format=torch.channels_last))


def test_sources_of_any_stride():
    for source in (torch.randn(18, 25), torch.randn(25, 36)[:, ::2].T, torch.randn(1, 18).expand(25, 18).T):
        check(source, torch.full(source.shape, torch.nan))


def test_blocks_at_their_true_size(monkeypatch):
    for name, value in (("_WORTHWHILE", 2**17), ("_BLOCK", 2**18), ("_LARGEST_BLOCK", 2**20), ("_LEAST_ROWS", 16)):
        monkeypatch.setattr(permute, name, value)
    calls = []
    shuffle = torch.channel_shuffle
    monkeypatch.setattr(torch, "channel_shuffle", lambda x, groups: calls.append(x.numel()) or shuffle(x, groups))
    check(view("flatten", (7, 7), 50, 300, torch.float32, 0), torch.full((300, 50, 7, 7), torch.nan))
    assert len(calls) == 3, "the blocks were not used"
    assert max(calls) <= 2**18
    calls.clear()
    for few in ((300, 300), (8, 2**15)):
        check(view("dense", (), *few, torch.float32, 0), torch.full(few[::-1], torch.nan))
    assert not calls
    check(view("flatten", (128, 128), 2, 64, torch.float32, 0), torch.full((64, 2, 128, 128), torch.nan))
    assert calls == [2**20] * 2
    calls.clear()
    many_pixels = view("flatten", (128, 129), 2, 64, torch.float32, 0)
    check(many_pixels, torch.full(many_pixels.shape, torch.nan))
    assert not calls, "a block would take about as much memory as the tensor"
