"""Checkpoints: written whole, with a digest of their own, read without running code, put into their models.

A checkpoint is a dictionary of plain Python types and tensors:

    paper     slug
    config    the configuration as JSON types (`shared.cli.config_to_dict`)
    step      updates done
    models    list of state dictionaries, in the order of `Run.prepare`
    objects   name -> state of what else a run needs: optimizers, schedulers, averaged weights, ...
    scaler    state of the gradient scaler
    rng       list of the random generators' states, one per process
    digest    SHA-256 of all of this

torch does not look at the checksums of its files, so that a damaged one would be read as other weights. What
the digest says is unchanged may still not be right, for it was written by somebody's program: structure and
types are checked as well, and whatever does not fit is an `InputError` of one sentence.
"""

import contextlib
import hashlib
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from shared.cli import config_from_dict
from shared.errors import InputError
from shared.files import write_atomically

KEYS = {"paper": str, "config": dict, "step": int, "models": list, "objects": dict, "scaler": dict, "rng": list}


# --- writing ---------------------------------------------------------------------------------------------


def save_checkpoint(path: Path, content: dict) -> None:
    """Write a checkpoint with its digest, atomically.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """
    save_tensors(path, {**content, "digest": digest_of(content)})


def save_tensors(path: Path, content: dict) -> None:
    """`torch.save`, atomically: plain tensors for other programs, without a digest.

    Raises:
        OSError: the disk is full, or the folder can't be written.
    """

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            watched = _Watched(file)
            try:
                torch.save(content, watched)
            except RuntimeError:  # torch's words for a write that failed
                if watched.error is not None:
                    raise watched.error from None
                raise

    write_atomically(path, write)


class _Watched:
    """A file that remembers which error of the system ended its writing."""

    def __init__(self, file):
        self.file, self.error = file, None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def digest_of(content) -> str:
    """SHA-256 of nested dictionaries, lists and tensors: of all their types, names, shapes and values."""
    digest = hashlib.sha256()

    def add(item) -> None:
        if isinstance(item, Tensor):
            digest.update(f"tensor {item.dtype} {tuple(item.shape)} ".encode())
            values = item.detach().cpu().contiguous().reshape(-1)
            digest.update(memoryview(values.view(torch.uint8).numpy()))
        elif isinstance(item, dict):
            digest.update(f"dict {len(item)} ".encode())
            for key, value in item.items():
                add(key)
                add(value)
        elif isinstance(item, list | tuple):
            digest.update(f"{'list' if isinstance(item, list) else 'tuple'} {len(item)} ".encode())
            for value in item:
                add(value)
        else:
            digest.update(f"{type(item).__name__} {item!r} ".encode())

    add(content)
    return digest.hexdigest()


# --- reading ---------------------------------------------------------------------------------------------


def load_checkpoint(path: Path, paper: str | None = None, variant: str | None = None) -> dict:
    """Read a checkpoint, onto the CPU, with `weights_only=True`.

    Returns:
        the dictionary that is described at the top of this file, without the digest.

    Raises:
        InputError: the file is missing, damaged, not a checkpoint, or of another paper or variant.
    """
    content = load_tensors(path)
    missing = [key for key in (*KEYS, "digest") if key not in content]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}, so it is no checkpoint of this version; train anew")
    digest = content.pop("digest")
    with fitting(path):
        unchanged = digest == digest_of(content)
    if not unchanged:
        raise InputError(f"{path}: damaged, for it is not what its digest was taken of; use a copy, or train anew")
    for key, kind in KEYS.items():
        if type(content[key]) is not kind:
            found = type(content[key]).__name__
            raise InputError(f"{path}: damaged, for its '{key}' is of type {found}, expected {kind.__name__}")
    found_paper, found_variant = content["paper"], content["config"].get("variant")
    if paper is not None and found_paper != paper:
        raise InputError(f"{path}: this is a checkpoint of '{found_paper}', expected one of '{paper}'")
    if variant is not None and found_variant != variant:
        raise InputError(f"{path}: this is a checkpoint of variant '{found_variant}', expected '{variant}'")
    if content["step"] < 0:
        raise InputError(f"{path}: damaged, for its step is {content['step']}")
    if not content["rng"] or not all(isinstance(state, dict) for state in content["rng"]):
        raise InputError(f"{path}: damaged, for it has no states of random generators")
    for number, state in enumerate(content["models"]):
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise InputError(f"{path}: damaged, for its model {number} is no dictionary of weights")
    refuse_nan(content["models"], path)
    return content


def load_tensors(path: Path) -> dict:
    """A dictionary that `save_tensors` or `save_checkpoint` has written, as it is.

    Raises:
        InputError: the file is missing, truncated, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no checkpoint here; train first, or give the path of a checkpoint.pt")
    path.open("rb").close()  # what the system refuses is its own sentence
    with warnings.catch_warnings():  # torch's, on a damaged file
        warnings.simplefilter("ignore")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch each have their own
            message = f"{path}: not a readable checkpoint of this project (truncated, or another format)"
            raise InputError(message) from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected the dictionary of a checkpoint")
    return content


def name_of_nan(states: Sequence[dict]) -> str | None:
    """Name of the first tensor in these state dictionaries that holds a NaN; infinity may be a mask."""
    for state in states:
        for name, value in state.items():
            if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any()):
                return name
    return None


def refuse_nan(states: Sequence[dict], path: Path) -> None:
    """Weights that are NaN predict nothing.

    Raises:
        InputError: some are.
    """
    name = name_of_nan(states)
    if name is not None:
        raise InputError(f"{path}: its weights {name} are not finite; use an earlier checkpoint, or train anew")


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Whatever in the block does not fit what was read from `path` becomes one sentence.

    For what a paper keeps in `objects` and for the models that it makes of stored settings.

    Raises:
        InputError: in place of a missing key, a wrong type, a shape that does not fit, ...

    Example:
        >>> with fitting(Path("run/checkpoint.pt")):
        ...     {}["tables"]
        Traceback (most recent call last):
        shared.errors.InputError: run/checkpoint.pt: its content does not fit this version (KeyError: 'tables'); ...
    """
    try:
        yield
    except (InputError, OSError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        detail = shortened(f"{type(error).__name__}: {error}")
        raise InputError(f"{path}: its content does not fit this version ({detail}); train anew") from error


def shortened(text: str, most: int = 160) -> str:
    """On one line, and not longer than a sentence may be."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."


# --- into the models -------------------------------------------------------------------------------------


def load_weights(model: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    """`model.load_state_dict(state)`, every misfit in one sentence that names `path`.

    Raises:
        InputError: parameters are missing, left over, of another shape or type.
    """
    expected = model.state_dict()
    found = misfit(dict(expected), state) if isinstance(state, dict) else f"expected weights, found {state!r}"
    if found:
        kind = type(model).__name__
        raise InputError(f"{path}: its weights don't fit the {kind} of its settings: {shortened(found)}")
    refuse_nan([state], path)
    with fitting(path):
        model.load_state_dict(state)
    return model


def load_all_weights(models: Sequence[nn.Module], states: Sequence[dict], path: Path) -> None:
    """Each model gets its state, in their order.

    Raises:
        InputError: there are more or fewer states than models, or one does not fit.
    """
    if len(states) != len(models):
        raise InputError(f"{path}: holds {len(states)} models, expected {len(models)}")
    for model, state in zip(models, states):
        load_weights(model, state, path)


def load_model(
    path: Path,
    paper: str,
    config_class: type,
    build: Callable,
    device: torch.device | str = "cpu",
    which: int = 0,
    of: int = 1,
) -> tuple[nn.Module, object]:
    """The trained model of a checkpoint in evaluation mode, and its configuration.

    Args:
        path: the checkpoint.
        paper: slug that it must be of.
        config_class: the paper's `Config`.
        build: makes the model of a configuration, on the CPU.
        device: where the model goes.
        which: number of the model, in the order of `Run.prepare`.
        of: number of models in the checkpoint.

    Raises:
        InputError: no checkpoint of this paper, or one that does not fit this version of its code.
    """
    content = load_checkpoint(path, paper)
    config = load_config(content, config_class, path)
    if len(content["models"]) != of:
        raise InputError(f"{path}: holds {len(content['models'])} models, expected {of}")
    with fitting(path):
        model = build(config)
    return load_weights(model, content["models"][which], path).to(device).eval(), config


def load_config(content: dict, config_class: type, path: Path):
    """The configuration in a checkpoint's content.

    Raises:
        InputError: it is of another version, or a setting has a wrong type or is out of range.
    """
    try:
        return config_from_dict(config_class, content["config"])
    except InputError as error:
        raise InputError(f"{path}: {error}; train anew") from error


def misfit(expected, found, where: str = "") -> str | None:
    """What differs in structure between two nested dictionaries of tensors and plain values, or None.

    Keys, lengths, shapes and types of tensors must agree; so must the kind of plain values, numbers being one kind.

    Example:
        >>> misfit({"a": [1, 2.0]}, {"a": [3, "x"]})
        "a.1 is 'x', expected a number"
    """
    label = where or "it"
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor):
            return f"{label} is {found!r}, expected a tensor"
        if found.shape != expected.shape or found.dtype != expected.dtype or found.layout != expected.layout:
            return f"{label} is {tuple(found.shape)} {found.dtype}, expected {tuple(expected.shape)} {expected.dtype}"
        return None
    if isinstance(expected, dict | list | tuple):
        kind = dict if isinstance(expected, dict) else (list, tuple)
        if not isinstance(found, kind):
            return f"{label} is {found!r}, expected a {'dictionary' if kind is dict else 'list'}"
        if kind is dict:
            for names, what in ((expected.keys() - found.keys(), "lacks"), (found.keys() - expected.keys(), "has")):
                if names:
                    return f"{label} {what} {', '.join(sorted(map(str, names))[:3])}"
            pairs = [(key, expected[key], found[key]) for key in expected]
        else:
            if len(found) != len(expected):
                return f"{label} has {len(found)} items, expected {len(expected)}"
            pairs = [(number, *both) for number, both in enumerate(zip(expected, found))]
        for key, a, b in pairs:
            below = misfit(a, b, f"{where}.{key}" if where else str(key))
            if below:
                return below
        return None
    for kinds, name in (((bool,), "true or false"), ((int, float), "a number"), ((str,), "a text")):
        if isinstance(expected, kinds):
            fits = isinstance(found, kinds) and isinstance(found, bool) == isinstance(expected, bool)
            return None if fits else f"{label} is {found!r}, expected {name}"
    return None


def misfit_of_moments(optimizer: torch.optim.Optimizer, state: dict) -> str | None:
    """What an optimizer keeps for each weight has the weight's shape, or is one number."""
    if isinstance(optimizer, torch.optim.Adafactor | torch.optim.LBFGS):  # these keep other things
        return None
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, kept in state["state"].items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.dim() > 0 and value.shape != weights[number].shape:
                return f"{name} of weight {number} is {tuple(value.shape)}, expected {tuple(weights[number].shape)}"
    return None


# --- random generators --------------------------------------------------------------------------------


def rng_state(device: torch.device) -> dict:
    """States of the generators of torch, NumPy and Python, as plain types."""
    numpy_state = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": [numpy_state[0], torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]],
        "python": list(random.getstate()[1]),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict, device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate((3, tuple(state["python"]), None))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
