"""Families of operations of the two frameworks that do the same kind of thing, by name.

Layers, modules and functions are compared by their names. A twin may call a method that is no object of its own
(``x.mean``), or a module of the user's own that is named after what it does (``MaxPool2dSame``). All names are in lower
case, without the parts for dimensions, padding and in-place operation.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from parity.models.keras_graph import Step, activates
from parity.models.keras_layers import activation_name
from parity.models.torch_calls import Call

from torch import nn

_ACTIVATIONS = (
    "relu relu6 leakyrelu leaky_relu elu selu celu gelu silu swish mish sigmoid logsigmoid tanh softmax logsoftmax "
    "log_softmax softplus softsign hardtanh hardsigmoid hardswish hard_sigmoid hard_silu prelu rrelu clamp clamp_min "
    "clip threshold tanhshrink softshrink hardshrink exponential exp glu where maximum"
)
_POOLS = (
    "maxpool avgpool adaptivemaxpool adaptiveavgpool max_pool avg_pool adaptive_max_pool adaptive_avg_pool "
    "maxpooling averagepooling globalmaxpooling globalaveragepooling adaptivemaxpooling adaptiveaveragepooling "
    "mean amax max sum lppool div truediv"
)
FAMILIES: Mapping[str, frozenset[str]] = {
    family: frozenset(names.split())
    for family, names in {
        "activation": "activation " + _ACTIVATIONS,
        "pooling": _POOLS,
        "merge": "add iadd radd cat concat concatenate stack hstack mul multiply imul sub subtract rsub average "
        "minimum maximum dot matmul",
        "order": "flatten reshape permute view transpose movedim unflatten repeatvector expand moveaxis",
        "border": "zeropadding zeropad pad constantpad cropping getitem narrow reflectionpad",
        "dropout": "dropout spatialdropout alphadropout gaussiandropout gaussiannoise feature_dropout alpha_dropout",
        "upsampling": "upsampling upsample interpolate repeat_interleave",
        "linear": "dense linear addmm einsumdense einsum",
        "convolution": "conv depthwiseconv separableconv convtranspose conv_transpose convolution",
        "statistics": "batchnormalization batchnorm batch_norm layernormalization layernorm layer_norm "
        "groupnormalization groupnorm group_norm",
        "division": "truedivide divide true_divide truediv div",
        "power": "sqrt rsqrt square power pow norm linalg_norm linalg_vector_norm",
        "scale": "rescaling normalization unitnormalization mul multiply div truediv sub add imul itruediv normalize",
    }.items()
}
"""The names of each family: those of Keras's layers and of PyTorch's modules and functions."""

WHOLE_FAMILIES = ("activation", "merge", "order", "border", "dropout")
"""Families in which one function alone does what a Keras layer does; a function of another may do a part of it."""

_AVERAGES = (
    "averagepooling globalaveragepooling adaptiveaveragepooling avgpool avg_pool adaptiveavgpool adaptive_avg_pool mean"
)
_MAXIMA = "maxpooling globalmaxpooling adaptivemaxpooling maxpool max_pool adaptivemaxpool adaptive_max_pool amax max"
POOLINGS = (frozenset(_AVERAGES.split()), frozenset(_MAXIMA.split()))
"""The names of each kind of pooling."""

ARITHMETIC = frozenset({"where", "maximum", "minimum", "clamp", "clip"}).union(
    *(FAMILIES[family] for family in ("merge", "scale", "division", "power"))
)
"""Operations that may be done in another order with the same result."""

IDENTITIES = frozenset({*FAMILIES["dropout"], "identity", "activityregularization", "masking"})
"""Operations that return their input in evaluation mode."""

SCALES = frozenset({"rescaling", "normalization"})
"""Keras's layers that scale."""

_SAME_NUMBERS = (
    "permute transpose movedim moveaxis swapaxes swapdims contiguous clone detach to float double cpu type squeeze "
    "unsqueeze view view_as reshape flatten unflatten expand t requires_grad requires_grad_ identity dropout "
    "pad zeropad constantpad"
)
_KEEPS_NUMBERS = frozenset(_SAME_NUMBERS.split())


def names_of_step(step: Step) -> frozenset[str]:
    """Return the names of a step: its kind; "activation" for every activation, and "identity" for the linear one."""
    if not activates(step):
        return frozenset({_plain(type(step.layer).__name__)})
    return frozenset({"activation", *(["identity"] if activation_name(step.layer) == "linear" else [])})


def names_of_call(call: Call) -> frozenset[str]:
    """Return the names of a call: that of its function, or those of its module's class and the bases of the class."""
    name = call.name if call.module is None else type(call.module).__name__
    bases: Sequence[Any] = () if call.module is None else type(call.module).__mro__
    known = {_plain(base.__name__) for base in bases if base not in (nn.Module, object)}
    return frozenset({_plain(name), *known, *(["dropout"] if call.rate is not None else [])})


def same_numbers(call: Call) -> bool:
    """Tell whether a call returns the numbers of its input, perhaps in another order or with a border."""
    return bool(call.inputs) and call.inputs[0] >= 0 and bool(names_of_call(call) & _KEEPS_NUMBERS)


def may_be_twin(step: Step, call: Call) -> bool:
    """Tell whether a call may be the twin of a step without weights."""
    step_names, call_names = names_of_step(step), names_of_call(call)
    same_family = any(step_names & family and call_names & family for family in FAMILIES.values())
    if step_names & call_names or same_family:
        return True
    return may_be_anything(call) and not step_names & (FAMILIES["dropout"] | FAMILIES["order"])


def may_be_anything(call: Call) -> bool:
    """Tell whether a call is of a module of the user's own whose name does not say what it does."""
    own = call.module is not None and not type(call.module).__module__.startswith("torch.nn")
    return own and not any(names_of_call(call) & family for family in FAMILIES.values())


@cache
def _plain(name: str) -> str:
    """Return a name without the parts for dimensions, padding and in-place operation: MaxPool2dSame is maxpool."""
    return re.sub(r"(\d[dD])|same$|_$", "", name.lower().strip("_"))
