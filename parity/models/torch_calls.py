"""Record what a PyTorch model calls while it runs: its modules, and the functions between them."""

import os
import sys
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from types import FrameType
from typing import Any, NamedTuple

from parity.errors import ParityError
from parity.models.replacing import Taken, with_others

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_TAG = "_parity_number"
# Where code that is not the user's lies. A cell of a notebook has no file, but IPython gives it the name of one.
_NOT_THE_USERS = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(__file__)))
_DROPOUTS = frozenset(
    {
        torch.dropout,
        torch.feature_dropout,
        torch.alpha_dropout,
        nn.functional.dropout,
        nn.functional.dropout1d,
        nn.functional.dropout2d,
        nn.functional.dropout3d,
        nn.functional.alpha_dropout,
        nn.functional.feature_alpha_dropout,
    }
)

_OTHER_CALLS = "what it calls depends on the number of examples, or on their values, or on chance"


class Call(NamedTuple):
    """One call of a module, or of a function outside of such modules.

    Attributes:
        name: The module's name, or the function's.
        module: The module, None for a function.
        inputs: Numbers of the tensors that it takes; -1 for a tensor that the model has not computed.
        outputs: Numbers of the tensors that it returns.
        shapes: Shape of each tensor that it returns.
        rate: The dropout rate, if it is dropout, or a module of the user's own that does nothing but dropout.
        overwrites: Whether it returns the same tensor object that it takes, with other numbers or the same.
        rates_inside: The rates of all dropout in a module that does more than dropout.
        at: File and line of the user's code that calls it, such as "port.py, line 12"; empty if there is no such file.
    """

    name: str
    module: nn.Module | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    rate: float | None = None
    overwrites: bool = False
    rates_inside: tuple[float, ...] = ()
    at: str = ""


# Called with the number of a call, "in" before it runs or "out" after it, and its inputs or outputs. The call after the
# last is the model's return, whose inputs are the model's outputs. If it returns a list of tensors, the model goes on
# with these in place of the inputs or outputs; what an in-place call has overwritten is overwritten once more.
Watcher = Callable[[int, str, list[Tensor]], list[Tensor] | None]


HINT_OF_AXES = ". If its inputs have other axes than Keras's with the channels moved to axis 1, give them as torch_x"
"""What is said of a twin that stops, for it may be right."""

HINT_OF_SIZE = ". It was exported for inputs of one size: give inputs of that size, or export it with dynamic_shapes"
"""What is said of a twin by ``torch.export`` that stops because its inputs have another size."""

_GUARD = "Guard failed"


class Watch(NamedTuple):
    """How a model that was recorded before is watched while it runs again.

    Attributes:
        expected: The calls as they were recorded. A function that returns no tensor, such as ``x.size()``, is no call,
            and that shows only after it has run. From these it is known before.
        watcher: Called before and after each call. It must not change the tensors, nor keep them without a copy: a
            later call may overwrite them. It may return others, with which the model goes on.
        dropout: Whether functions such as ``F.dropout`` drop anything.
    """

    expected: Sequence[Call]
    watcher: Watcher
    dropout: bool = True


def record(
    model: nn.Module,
    inputs: Sequence[Tensor],
    whole: Collection[nn.Module] = (),
    keys: Sequence[str] = (),
    watch: Watch | None = None,
) -> tuple[list[Call], list[int], list[Tensor]]:
    """Run a PyTorch model and record its calls in their order.

    A module without modules in it counts as one call, and so does a module in ``whole``. What happens inside such a
    module is not recorded. The model is not changed. A model that was compiled by ``torch.compile`` runs uncompiled.

    Args:
        model: The model; it runs in the mode (training or evaluation) that it is in.
        inputs: Its inputs. They get the numbers 0, 1, ...
        whole: Modules that count as one call although they have modules in them.
        keys: If the model returns a dictionary with these keys, its outputs are returned in this order.
        watch: How to watch it, if it was recorded before.

    Returns:
        The calls, the numbers of the model's outputs, and the outputs as a flat list.

    Raises:
        ParityError: If the model fails, or its calls are not those that were expected.
    """
    recorder = _Recorder(model, whole, watch)
    with recorder.listening():
        for tensor in inputs:
            recorder.number(tensor)
        try:
            with nullcontext() if watch is None or watch.dropout else _DroppingNothing(), recorder:
                outputs = model(*inputs)
        except Exception as error:
            if isinstance(error, ParityError) or error is recorder.watcher_error:
                raise
            where = f" in {recorder.failed}" if recorder.failed else ""
            hint = HINT_OF_SIZE if str(error).startswith(_GUARD) else HINT_OF_AXES
            raise recorder.fault(f"it stops{where}: {type(error).__name__}: {error}{hint}") from error
        if recorder.expected_name() is not None:
            raise recorder.fault(_OTHER_CALLS)
        if isinstance(outputs, Mapping) and set(outputs) == set(keys):
            outputs = [outputs[key] for key in keys]
        leaves = tensors_in(outputs)
        recorder.notify("in", leaves)
        return recorder.calls, list(map(number_of, leaves)), leaves


def number_of(tensor: Tensor) -> int:
    """Return the number of a tensor that a recorded model has computed, -1 for any other tensor."""
    return getattr(tensor, _TAG, -1)


def identity_of(tensor: Tensor) -> tuple[int, int] | None:
    """Return the number of a tensor and its version, which changes if it is overwritten; None without a number."""
    number = -1 if tensor.is_inference() else number_of(tensor)
    return (number, tensor._version) if number >= 0 else None


class _Recorder(TorchFunctionMode):
    """Numbers every tensor as it is computed; the number stays with the tensor as an attribute while it listens."""

    def __init__(self, model: nn.Module, whole: Collection[nn.Module], watch: Watch | None) -> None:
        super().__init__()
        self.model = model
        self.watch = watch
        self.names = {id(module): name for name, module in model.named_modules()}
        ends = [module for module in model.modules() if not any(True for _ in module.children())]
        # A model of the user's own without modules consists of functions only.
        if ends == [model] and not type(model).__module__.startswith("torch.nn"):
            ends = []
        self.ends = {id(module): module for module in (*ends, *whole)}
        self.calls: list[Call] = []
        # The module that runs, if one does: its identity, its inputs and their numbers.
        self.inside: list[tuple[int, Taken, tuple[int, ...]]] = []
        self.entered_at = ""
        # The dropout rate of each function that has run in it, None for other functions.
        self.functions_inside: list[float | None] = []
        self.failed = ""
        self.watcher_error: Exception | None = None
        self.numbered: list[weakref.ref[Tensor]] = []
        self.count = 0

    def number(self, tensor: Tensor) -> int:
        if not hasattr(tensor, _TAG):
            self.numbered.append(weakref.ref(tensor))
        setattr(tensor, _TAG, self.count)
        self.count += 1
        return self.count - 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to all modules while a model runs; hooks of the modules themselves are left alone."""
        handles = [
            register_module_forward_pre_hook(self.enter_scripted),
            register_module_forward_hook(self.leave, always_call=True),
        ]
        try:
            for module in self.ends.values():
                if not isinstance(module, torch.jit.ScriptModule):
                    handles.append(module.register_forward_pre_hook(self.enter, prepend=True, with_kwargs=True))
            with ExitStack() as stack:
                if any(hasattr(m, "_orig_mod") or m._compiled_call_impl for m in self.model.modules()):
                    stack.enter_context(torch.compiler.set_stance("force_eager"))
                    stack.enter_context(warnings.catch_warnings())
                    warnings.filterwarnings("ignore", "Using `torch.compile")  # that there are hooks, which are these
                yield
        finally:
            for handle in handles:
                handle.remove()
            for tensor in (reference() for reference in self.numbered):
                if tensor is not None:
                    delattr(tensor, _TAG)

    def fault(self, text: str) -> ParityError:
        return ParityError(type(self.model).__name__, [text])

    def enter_scripted(self, module: nn.Module, args: Any) -> Any:
        """Enter a scripted module. It accepts no hook of its own, so its keyword arguments stay unknown."""
        if id(module) in self.ends and isinstance(module, torch.jit.ScriptModule):
            return self.enter(module, args)
        return None

    def enter(self, module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        """Enter a module; return what it takes in place of its arguments, None if these stay."""
        if self.inside:
            return None
        tensors = tensors_in((args, kwargs))
        numbers = tuple(map(number_of, tensors))
        given = self.notify("in", tensors)
        self.entered_at = self.line()
        self.inside.append((id(module), Taken(given or tensors, tensors), numbers))
        if given is None:
            return None
        self.keep_numbers(given, numbers)
        args, kwargs = with_others(given, tensors, (args, kwargs))
        return args if kwargs is None else (args, kwargs)

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Leave a module; return what it returns in place of its output, None if that stays."""
        if not self.inside or self.inside[-1][0] != id(module):
            return None
        functions, self.functions_inside = self.functions_inside, []
        rates = tuple(rate for rate in functions if rate is not None)
        if isinstance(module, nn.modules.dropout._DropoutNd):
            rates, functions = (module.p,), [module.p]
        rate = rates[0] if len(rates) == len(functions) == 1 else None
        _, taken, numbers = self.inside.pop()
        name = self.names[id(module)]
        if output is None:  # the module failed; its caller may catch the error
            self.failed = name
            return None
        inside = rates if rate is None else ()
        call = Call(name, module, numbers, rate=rate, rates_inside=inside, at=self.entered_at)
        outputs = tensors_in(output)
        given = self.add(call, taken, outputs)
        self.carry_over(taken)
        return None if given is None else with_others(given, outputs, output)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            output = func(*args, **kwargs)
            if tensors_in(output):
                self.functions_inside.append(_rate(func, args, kwargs))
            return output
        name = getattr(func, "__name__", "").strip("_").partition(".")[0]  # torch.export has conv2d.default
        # x.T and the like are attributes: their function is called __get__, that of any attribute.
        name = "permute" if name == "get" else name
        originals = tensors = tensors_in((args, kwargs))
        numbers = tuple(map(number_of, tensors))
        known = any(number >= 0 for number in numbers)
        if known and self.watch is not None and name == self.expected_name():
            given = self.notify("in", tensors)
            if given is not None:
                self.keep_numbers(given, numbers)
                args, kwargs = with_others(given, tensors, (args, kwargs))
                tensors = given
        taken = Taken(tensors, originals)
        rate, at = _rate(func, args, kwargs), self.line() if known else ""
        output = func(*args, **kwargs)
        results = tensors[:1] if name == "setitem" else tensors_in(output)
        call = Call(name, None, numbers, rate=rate, at=at)
        given = self.add(call, taken, results) if results and known else None
        self.carry_over(taken)
        return output if given is None else with_others(given, results, output)

    @staticmethod
    def line() -> str:
        """Return the file and the line of the user's code that is running; nothing if it is in no file."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
            frame = frame.f_back
        if frame is None or not os.path.isfile(frame.f_code.co_filename):
            return ""
        return f"{os.path.basename(frame.f_code.co_filename)}, line {frame.f_lineno}"

    def expected_name(self) -> str | None:
        """Return the name of the call that is expected next, None if no call is."""
        expected = self.watch.expected if self.watch is not None else ()
        return expected[len(self.calls)].name if len(self.calls) < len(expected) else None

    def add(self, call: Call, taken: Taken, outputs: list[Tensor]) -> list[Tensor] | None:
        """Add a call that has run, with its outputs, their shapes, and whether it has overwritten an input.

        Returns:
            What the model goes on with in place of the outputs, None if it does so with the outputs.
        """
        if self.watch is not None and call.name != self.expected_name():
            raise self.fault(_OTHER_CALLS)
        # Numbered first, so that who watches can tell them from what the next call takes.
        numbers = tuple(map(self.number, outputs))
        given = self.notify("out", outputs)
        if given is not None:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                given = [taken.overwritten(*pair) for pair in zip(outputs, given, strict=True)]
            self.keep_numbers(given, numbers)
        shapes = tuple(tuple(tensor.shape) for tensor in outputs)
        overwrites = any(output is tensor for output in outputs for tensor in taken.tensors)
        self.calls.append(call._replace(outputs=numbers, shapes=shapes, overwrites=overwrites))
        return given

    def carry_over(self, taken: Taken) -> None:
        """Overwrite the originals, too: the model may go on with these, as after ``F.relu_(x)``."""
        for tensor, original in taken.overwritten_ones():
            with torch._C.DisableTorchFunction(), torch.no_grad():
                original.copy_(tensor)
            self.keep_numbers([original], [number_of(tensor)])

    def keep_numbers(self, tensors: Sequence[Tensor], numbers: Sequence[int]) -> None:
        """Give tensors the numbers of those in whose place they are."""
        for tensor, number in zip(tensors, numbers, strict=True):
            if number < 0:
                continue
            if not hasattr(tensor, _TAG):
                self.numbered.append(weakref.ref(tensor))
            setattr(tensor, _TAG, number)

    def notify(self, when: str, tensors: list[Tensor]) -> list[Tensor] | None:
        """Tell the watcher of tensors; return what the model is to go on with in their place, if anything."""
        if self.watch is None:
            return None
        try:
            with torch._C.DisableTorchFunction():
                given = self.watch.watcher(len(self.calls), when, tensors)
        except Exception as error:
            self.watcher_error = error
            raise
        return given if isinstance(given, list) else None


class _DroppingNothing(TorchFunctionMode):
    """While it is active, functions such as ``F.dropout`` drop nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _DROPOUTS:
            return func(*args, **(kwargs or {}))
        # It returns a new tensor, as dropout does.
        return tensors_in((args, kwargs))[0].clone()


def _rate(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    """Return the rate of a call of dropout, None for any other function."""
    if func not in _DROPOUTS:
        return None
    given = dict(zip(("input", "p", "training"), args, strict=False)) | dict(kwargs)
    return float(given.get("p", 0.5))


def tensors_in(tree: Any) -> list[Tensor]:
    """Return all tensors in nested lists, tuples and dictionaries, in their order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
