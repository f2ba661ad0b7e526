"""What a user sets on the command line of `make reproduce`: hyperparameters and the name of a data set."""

import dataclasses
import json
import re
import types
import typing
from pathlib import Path

from shared.errors import InputError

OF_THE_RUNNER = ("data", "out", "profile", "variant", "seed", "device", "resume", "overwrite", "init")
"""settings that the runner gives each training itself"""


def split_pairs(text: str) -> list[tuple[str, str]]:
    """`name=value` pairs out of one text; a value that begins as JSON, or with a quote, goes to its end.

    Nothing is expanded or executed.

    Raises:
        InputError: something in between is no pair.

    >>> split_pairs('steps=300 domains=["a b", "c=d"] title=\\'x y\\' shape=[1, 2]')
    [('steps', '300'), ('domains', '["a b", "c=d"]'), ('title', 'x y'), ('shape', '[1, 2]')]
    """
    pairs, position = [], 0
    while match := re.compile(r"\s*([A-Za-z_]\w*)=").match(text, position):
        start = match.end()
        if text[start : start + 1] in ("[", "{", '"'):
            try:
                end = json.JSONDecoder().raw_decode(text, start)[1]
            except ValueError as error:
                raise InputError(f"--set {text}: the value of {match[1]} begins like JSON, and is none") from error
            value = text[start:end]
        elif text[start : start + 1] == "'" and (quote := text.find("'", start + 1)) > 0:
            value, end = text[start + 1 : quote], quote + 1
        else:
            end = start + len(re.compile(r"\S*").match(text, start)[0])
            value = text[start:end]
        pairs.append((match[1], value))
        position = end
    if text[position:].strip() or not pairs:
        raise InputError(f"--set {text}: expected name=value, found '{text[position:].strip()}'")
    return pairs


def parse_overrides(texts: tuple[str, ...], config_class: type) -> dict:
    """Hyperparameters to change, with values of the types that the configuration has.

    Args:
        texts: each of one or more pairs `name=value`; values are JSON where that is possible, else text.
        config_class: the paper's `Config`.

    Raises:
        InputError: no pair, a hyperparameter that the paper does not have or that is not the user's, or a value of
            another type.
    """
    hints = typing.get_type_hints(config_class)
    known = sorted({field.name for field in dataclasses.fields(config_class)} - set(OF_THE_RUNNER))
    values = {}
    for name, text in (pair for given in texts for pair in split_pairs(given)):
        if name not in known:
            raise InputError(f"--set {name}={text}: expected name=value with a name out of {', '.join(known)}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        for candidate in (_as_tuples(value), text):
            if fits(candidate, hints[name]):
                values[name] = candidate
                break
        else:
            raise InputError(f"--set {name}={text}: expected {_in_words(hints[name])}")
    return values


def _as_tuples(value):
    return tuple(_as_tuples(part) for part in value) if isinstance(value, list) else value


def fits(value, hint) -> bool:
    """Whether a value is of an annotated type; whole numbers are numbers, too.

    >>> fits((1, 2), tuple[int, ...]), fits(3, float), fits("3", int | None), fits("a", typing.Literal["a", "b"])
    (True, True, False, True)
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1:] == (Ellipsis,):
            return all(fits(item, parts[0]) for item in value)
        return len(value) == len(parts) and all(fits(item, part) for item, part in zip(value, parts))
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, str)
    return isinstance(value, origin or hint) if isinstance(origin or hint, type) else True


def _in_words(hint) -> str:
    return getattr(hint, "__name__", str(hint)) if not typing.get_args(hint) else str(hint).replace("typing.", "")


def valid_name(name: str) -> bool:
    """Whether a data set may be called so: it becomes part of the names of files and folders.

    >>> [valid_name(name) for name in ("retina28", "a.b_c-d", "..", "../x", "a b", "", ".hidden", "-x", "x\\n")]
    [True, True, False, False, False, False, False, False, False]
    """
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) is not None


def name_of_data(name: str | None, data: Path | None) -> str:
    """The name of the data set in the results: what the user gave, or the folder's, or standin.

    >>> name_of_data(None, Path("/data/OASIS 1")), name_of_data(None, None)
    ('OASIS_1', 'standin')

    Raises:
        InputError: a name that can't be that of a folder, or that would make real data pass as the stand-in.
    """
    if name is None:
        if data is None:
            return "standin"
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", data.name).lstrip("._-")
    if not valid_name(name):
        raise InputError(
            f"--name {name!r}: a data set's name has letters, digits, '.', '_' and '-', a letter or digit first"
        )
    if data is not None and name == "standin":
        raise InputError("real data can't have the name of the stand-in: give another one (NAME=..., --name)")
    return name
