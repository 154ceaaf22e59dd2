"""Names in a mapping that differ from the models' only by a wrapper around the twin, or by the count in a model's name.

``torch.compile`` and ``nn.DataParallel`` put their own names into the keys of the state dict, and the name of a
``keras.Sequential`` counts on with each model that a process makes.
"""

import re
from collections.abc import Collection, Iterable, Sequence

from parity.weights.mapping import Row

_COMPILED, _PARALLEL = "_orig_mod.", "module."


def with_names_of(rows: Sequence[Row], weights: Collection[str], tensors: Collection[str]) -> list[Row]:
    """Return the rows of a mapping with the names that the models have, where it is clear which are meant.

    Args:
        rows: The rows of the mapping.
        weights: The paths of the Keras weights.
        tensors: The keys of the twin's state dict.
    """
    paths = _renamed([row.keras for row in rows], weights)
    keys = _unwrapped([row.torch for row in rows], tensors)
    return [row._replace(keras=paths.get(row.keras, row.keras), torch=keys.get(row.torch, row.torch)) for row in rows]


def _unwrapped(names: Iterable[str], tensors: Collection[str]) -> dict[str, str]:
    """Return the key that is meant by each name that differs from it by a wrapper, if all names fit then."""
    names = [name for name in names if name]
    if set(names) <= set(tensors):
        return {}
    for plain in (_without_compiled, _without_wrappers):
        meant = {plain(key): key for key in tensors}
        if len(meant) == len(tensors) and all(plain(name) in meant for name in names):
            return {name: meant[plain(name)] for name in names}
    return {}


def _without_compiled(key: str) -> str:
    return key.replace(_COMPILED, "")


def _without_wrappers(key: str) -> str:
    return _without_compiled(key).removeprefix(_PARALLEL)


def _renamed(paths: Sequence[str], weights: Collection[str]) -> dict[str, str]:
    """Return the path that is meant by each path whose first part, the model's name, has another number."""
    unknown = [path for path in dict.fromkeys(paths) if path and path not in weights]
    if not unknown or any(path.count("/") < 2 for path in unknown):
        return {}
    theirs, ours = _by_model(unknown), _by_model(weights)
    found: dict[str, str] = {}
    for base in {_base(model) for model in theirs}:
        if any(path in weights and _base(path.partition("/")[0]) == base for path in paths):
            return {}  # one of two models may have the number that the other had
        before = sorted((model for model in theirs if _base(model) == base), key=_number)
        after = sorted((model for model in ours if _base(model) == base), key=_number)
        if len(before) != len(after):
            return {}
        for model, other in zip(before, after, strict=True):
            if not theirs[model] <= ours[other]:
                return {}
            found.update({f"{model}/{rest}": f"{other}/{rest}" for rest in theirs[model]})
    return found


def _by_model(paths: Iterable[str]) -> dict[str, set[str]]:
    """Return the rest of each path by its first part."""
    found: dict[str, set[str]] = {}
    for path in paths:
        model, _, rest = path.partition("/")
        found.setdefault(model, set()).add(rest)
    return found


def _base(model: str) -> str:
    return re.sub(r"_\d+$", "", model)


def _number(model: str) -> int:
    number = re.search(r"_(\d+)$", model)
    return int(number.group(1)) if number else 0
