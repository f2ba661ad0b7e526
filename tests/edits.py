"""Checkpoints that somebody edited by hand and wrote again with a right digest: each is wrong in one thing."""

import copy
import math
from collections.abc import Iterator

import torch

WRONG = (None, True, -3, 2.5, math.nan, "x", [], {}, ["x"], torch.zeros(1))


def edits(content: dict) -> Iterator[tuple[str, dict]]:
    """(what was done, the edited copy), for every part of a checkpoint."""
    for key in content:
        yield f"no {key}", without(content, key)
        for value in WRONG:
            empty = key in ("models", "objects", "scaler") and value in ([], {}) and type(value) is type(content[key])
            if not (empty and value == content[key]) and not (key == "rng" and value == ["x"]):
                yield f"{key} = {value!r}", {**content, key: value}
    yield "step = True", {**content, "step": True}
    yield from edits_of_settings(content)
    yield from edits_of_models(content)
    yield from edits_of_objects(content)
    yield "another scaler", {**content, "scaler": {**content["scaler"], "scale": "x"}}
    for key in content["rng"][0]:
        yield f"no rng {key}", {**content, "rng": [without(content["rng"][0], key)]}
        for value in (None, "x", [], torch.zeros(3, dtype=torch.uint8), [1, 2]):
            yield f"rng {key} = {value!r}", {**content, "rng": [{**content["rng"][0], key: value}]}


def edits_of_settings(content: dict) -> Iterator[tuple[str, dict]]:
    """Settings that are missing, unknown, of a wrong type or out of range."""
    config = content["config"]
    yield "unknown setting", {**content, "config": {**config, "heigth": 3}}
    for name, old in config.items():
        yield f"no setting {name}", {**content, "config": without(config, name)}
        for value in WRONG:
            if not isinstance(value, torch.Tensor) and not could_be(old, value):
                yield f"{name} = {value!r}", {**content, "config": {**config, name: value}}


def could_be(old, value) -> bool:
    """Whether a value is of the type of an old one and in its range, as far as one sees that from the old one."""
    if old is None or value is None:  # optional: anything of the right type, which None does not tell
        return True
    if type(old) is str:
        return type(value) is str
    if type(old) is bool:
        return type(value) is bool
    if type(old) in (int, float):
        return (
            type(value) in ((int,) if type(old) is int else (int, float))
            and math.isfinite(value)
            and (value >= 0 or old < 0)
        )
    return isinstance(old, list) and (value == [] or isinstance(old[0] if old else "", str) and value == ["x"])


def edits_of_models(content: dict) -> Iterator[tuple[str, dict]]:
    """Models and weights that are missing, too many, of another shape or type, or not finite."""
    models = content["models"]
    if models:
        yield "one model less", {**content, "models": models[:-1]}
    yield "one model more", {**content, "models": [*models, {}]}
    for number, state in enumerate(models):

        def put(changed, number=number):
            return {**content, "models": [changed if n == number else old for n, old in enumerate(models)]}

        yield f"model {number} a list", put(list(state.values()))
        yield f"model {number} empty", put({})
        yield f"model {number} with more", put({**state, "more": torch.zeros(1)})
        for name, weight in state.items():
            yield f"model {number} without {name}", put(without(state, name))
            for what, changed in changes_of(weight):
                yield f"model {number} {name} {what}", put({**state, name: changed})


def changes_of(weight: torch.Tensor) -> Iterator[tuple[str, object]]:
    yield "as a list", weight.tolist()
    yield "one dimension more", weight[None].clone()
    yield "longer", torch.cat([weight.reshape(-1), weight.reshape(-1)[:1]])
    yield "of another type", weight.to(torch.float16 if weight.dtype == torch.float32 else torch.float32)
    yield "of double precision", weight.double()
    if weight.is_floating_point():
        broken = weight.clone()
        broken.reshape(-1)[-1] = math.nan
        yield "with a NaN", broken


def edits_of_objects(content: dict) -> Iterator[tuple[str, dict]]:
    """Optimizers and schedulers that are missing, lack something or hold something of another type or shape."""
    objects = content["objects"]
    for name, state in objects.items():
        yield f"no object {name}", {**content, "objects": without(objects, name)}
        for value in (None, 3, "x", [], {}):
            yield f"object {name} = {value!r}", {**content, "objects": {**objects, name: value}}
        if not isinstance(state, dict):
            continue

        def put(changed, name=name):
            return {**content, "objects": {**objects, name: changed}}

        for key, value in state.items():
            yield f"{name} without {key}", put(without(state, key))
            if value is not None and not isinstance(value, bool):
                yield f"{name} {key} = 'x'", put({**state, key: "x"})
        if "param_groups" in state:
            for key, value in (("lr", "fast"), ("lr", None), ("params", [0])):
                changed = copy.deepcopy(state)
                changed["param_groups"][0][key] = value
                yield f"{name} {key} = {value!r}", put(changed)
            changed = copy.deepcopy(state)
            first = next(iter(changed["state"].values()))
            first["exp_avg"] = torch.zeros(3, 77)
            yield f"{name} with other moments", put(changed)


def without(dictionary: dict, key) -> dict:
    return {name: value for name, value in dictionary.items() if name != key}
