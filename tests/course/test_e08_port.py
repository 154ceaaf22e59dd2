"""Notebook 08: the class that it writes is that of ``torch_model.py``, and its exercises judge answers rightly."""

from course.exercises.e08_dronet import check_block, check_flatten_shape
from course.pages.anatomy import NOTEBOOKS, ROOT
from keras_model import resnet8
from parity import largest_difference, read_mapping, transfer
from parity.padding import Conv2dSame, MaxPool2dSame
from tests.helpers.models import draw, fill, in_float64
from torch_model import ResNet8

import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn

# --- The class on the page ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written():
    """The finished class, made from the source of the page's cells that define it."""
    cells = nbformat.read(NOTEBOOKS / "08_dronet.ipynb", as_version=4).cells
    sources = {cell.id: cell.source for cell in cells if cell.cell_type == "code"}
    names = {"torch": torch, "nn": nn, "Conv2dSame": Conv2dSame}
    for cell in ("dronet-finished-block", "dronet-finished-net"):
        exec(sources[cell], names)
    return names["DroNet"]


def test_the_class_on_the_page_has_the_keys_and_shapes_of_torch_model(written):
    shapes, expected = (
        {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} for model in (written(), ResNet8())
    )
    assert list(shapes.items()) == list(expected.items())


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("height", "width"), [(200, 200), (224, 201)])
def test_the_class_on_the_page_computes_what_torch_model_does(written, height, width, train):
    """Another epsilon, padding or flatten order shows in eval, another momentum in the statistics after train."""
    keras_model = fill(in_float64(resnet8(width, height, 1, 1)), seed=8)
    for variable in keras_model.weights:
        if variable.name == "kernel":
            variable.assign(variable / variable.shape[-2] ** 0.5 / 3)
    x = torch.from_numpy(draw(2, height, width, 1, seed=1)).permute(0, 3, 1, 2)
    outputs, statistics = [], []
    for model in (written().double(), ResNet8().double()):
        transfer(keras_model, model, read_mapping(ROOT / "keras_torch_mapping.csv"))
        model.train(train)
        model.dropout.eval()
        with torch.no_grad():
            outputs.append([*model(x), *model(x, logits=True)])
        statistics.append([buffer.double() for buffer in model.buffers()])
    for a, b in zip(outputs[0] + statistics[0], outputs[1] + statistics[1], strict=True):
        assert largest_difference(a, b) < 1e-9
    assert written().dropout.p == ResNet8().dropout.p


# --- Exercise 1 -----------------------------------------------------------------------------------------------------


class _Block(nn.Module):
    """A right answer; the broken ones below change one thing each."""

    def __init__(self):
        super().__init__()
        self.squeeze = nn.Conv2d(4, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(6, eps=0.01, momentum=0.1)
        self.wide = Conv2dSame(6, 6, (3, 5), stride=2)
        self.pool = MaxPool2dSame(3, 2)

    def forward(self, x):
        x = torch.relu(self.norm(self.squeeze(x)))
        return torch.relu(self.wide(x) + self.pool(x))


class _WithBias(_Block):
    def __init__(self):
        super().__init__()
        self.squeeze = nn.Conv2d(4, 6, 1)


class _Functions(_Block):
    def forward(self, x):
        x = F.relu(self.norm(self.squeeze(x)), inplace=True)
        return F.relu(self.pool(x) + self.wide(x))


class _DefaultEpsilon(_Block):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(6, momentum=0.1)


class _KerasMomentum(_Block):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(6, eps=0.01, momentum=0.9)


class _HalfPadding(_Block):
    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(6, 6, (3, 5), stride=2, padding=(1, 2))


class _PoolPaddedByHalf(_Block):
    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, padding=1)


class _KerasArgument(_Block):
    def __init__(self):
        super().__init__()
        self.wide = Conv2dSame(6, 6, (3, 5), strides=2)


class _SettingsOfThePage(_Block):
    """In floating point, 1 - 0.99 is 0.010000000000000009, which nobody wants to read."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(6, eps=0.01, momentum=1 - 0.99)


class _NoRelu(_Block):
    def forward(self, x):
        x = torch.relu(self.norm(self.squeeze(x)))
        return self.wide(x) + self.pool(x)


class _ShortcutBeforeRelu(_Block):
    def forward(self, x):
        x = self.norm(self.squeeze(x))
        return torch.relu(self.wide(torch.relu(x)) + self.pool(x))


class _OtherNames(_Block):
    def __init__(self):
        super().__init__()
        self.conv1 = self.squeeze
        del self.squeeze

    def forward(self, x):
        x = torch.relu(self.norm(self.conv1(x)))
        return torch.relu(self.wide(x) + self.pool(x))


class _InAList(nn.Module):
    def __init__(self):
        super().__init__()
        block = _Block()
        self.layers = [block.squeeze, block.norm, block.wide]

    def forward(self, x):
        squeeze, norm, wide = self.layers
        x = torch.relu(norm(squeeze(x)))
        return torch.relu(wide(x) + MaxPool2dSame(3, 2)(x))


class _Forgetful(_Block):
    def forward(self, x):
        x = torch.relu(self.norm(self.squeeze(x)))
        torch.relu(self.wide(x) + self.pool(x))


class _Pair(_Block):
    def forward(self, x):
        return super().forward(x), x


class _TooSmall(_Block):
    def forward(self, x):
        return super().forward(x)[:, :, 1:]


class _Stub(nn.Module):
    def __init__(self):
        super().__init__()

    def forward(self, x):
        return None


class _WithoutSuper(nn.Module):
    def __init__(self):
        self.squeeze = nn.Conv2d(4, 6, 1, bias=False)


RIGHT = "✓ Block: right; it equals Keras in all 5 cases"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (_Block, RIGHT),
        (_Block(), RIGHT),
        (
            _WithBias,
            "✓ Block: right; but squeeze has a bias, which Keras's has not (it is 0 now, and training would change it: "
            "bias=False); it equals Keras in all 5 cases",
        ),
        (_Functions, RIGHT),
        (_Stub, "… Block: not attempted yet"),
        (_Forgetful, "it returned None; is a `return` missing?"),
        (
            _DefaultEpsilon,
            "wrong for its layers and settings (as the weights are moved): row 1: eps of norm is 1e-05",
        ),
        (_KerasMomentum, "momentum (1 - Keras's) of norm is 0.9"),
        (_HalfPadding, "right for its layers and settings, odd sizes; wrong for even sizes (14 x 16): other numbers"),
        (_HalfPadding, "wide (wide): its inputs agree, its outputs do not; padding"),
        (_PoolPaddedByHalf, "odd sizes; wrong for even sizes"),
        (_NoRelu, "right for its layers and settings; wrong for every size that was tried (13 x 15): other numbers"),
        (_NoRelu, "activation missing"),
        (_KerasArgument, "TypeError: Conv2dSame: PyTorch says `stride`, not `strides`"),
        (_SettingsOfThePage, "momentum (1 - Keras's) of norm is 0.01; norm needs 0.1"),
        (_ShortcutBeforeRelu, "diagnose says: pool"),
        (_OtherNames, "PyTorch sees no module squeeze"),
        (_OtherNames, "the modules with weights are conv1, norm, wide"),
        (_InAList, "nor any other, as in a list"),
        (_Pair, "forward returns a tuple, not a tensor"),
        (_TooSmall, "its output has the shape (3, 6, 6, 8), not (3, 6, 7, 8)"),
        (_WithoutSuper, "cannot assign module before Module.__init__() call"),
        (lambda x: x, "a class is due that inherits from nn.Module"),
        (None, "a class is due"),
    ],
)
def test_blocks_are_judged(answer, said, capsys):
    check_block(answer)
    assert said in capsys.readouterr().out


def test_a_block_is_not_changed_by_its_check(capsys):
    block = _Block().train()
    before = {key: tensor.clone() for key, tensor in block.state_dict().items()}
    check_block(block)
    assert block.training
    assert all(torch.equal(before[key], tensor) for key, tensor in block.state_dict().items())


# --- Exercise 2 -----------------------------------------------------------------------------------------------------


def shape_of(size, pooled):
    for _ in range(3):
        size = pooled = -(-pooled // 2)
    return size


def right_shape(height, width):
    return (*(shape_of(size, ((size + 1) // 2 - 3) // 2 + 1) for size in (height, width)), 128)


def padded_pool(height, width):
    """It takes the pooling, which is valid, for one that pads."""
    return (*(shape_of(size, -(-((size + 1) // 2) // 2)) for size in (height, width)), 128)


def rounded_down(height, width):
    """It divides by 2 without rounding up."""
    return (*(((size // 2 - 3) // 2 + 1) // 8 for size in (height, width)), 128)


def forgetful(height, width):
    right_shape(height, width)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (right_shape, "✓ Shape: right; it equals Keras in all 7 cases"),
        (lambda height, width: list(right_shape(height, width)), "✓ Shape: right"),
        (lambda height, width: torch.tensor(right_shape(height, width)), "✓ Shape: right"),
        (lambda height, width: None, "… Shape: not attempted yet"),
        (forgetful, "it returned None; is a `return` missing?"),
        (lambda height, width: (7, 7, 128), "right for 200 x 200; wrong for images that are not square"),
        (padded_pool, "right for 200 x 200, images that are not square, odd sizes; wrong for other sizes"),
        (rounded_down, "wrong for 200 x 200"),
        (lambda height, width: (128, *right_shape(height, width)[:2]), "yours is PyTorch's order of axes"),
        (lambda height, width: right_shape(width, height), "rows and columns are exchanged"),
        (lambda height, width: 6272, "it returns 6272, not three integers (rows, columns, channels)"),
        (lambda height, width: (6272,), "1 numbers, not (rows, columns, channels)"),
        (lambda height, width: (7.0, 7.0, 128.0), "not three integers"),
        (lambda height, width: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_shapes_are_judged(answer, said, capsys):
    check_flatten_shape(answer)
    assert said in capsys.readouterr().out
