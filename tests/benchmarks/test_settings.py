"""What a user sets: hyperparameters of the right type, names that stay inside of `runs/`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from benchmarks.settings import name_of_data, parse_overrides, split_pairs
from shared.cli import RunConfig
from shared.errors import InputError


@dataclass
class Config(RunConfig):
    steps: int = 3
    lr: float = 0.1
    domains: tuple[str, ...] = ("a",)
    shape: tuple[int, int] = (1, 2)
    kind: Literal["one", "two"] = "one"
    text: str = "x"
    extra: int | None = None


@pytest.mark.parametrize("texts, expected", [
    (("steps=300",), {"steps": 300}),
    (("steps=300 lr=1", "kind=two"), {"steps": 300, "lr": 1, "kind": "two"}),
    (('domains=["a b", "c=d"] steps=1',), {"domains": ("a b", "c=d"), "steps": 1}),
    (("shape=[3, 4]  extra=null",), {"shape": (3, 4), "extra": None}),
    (("text='a b' extra=5",), {"text": "a b", "extra": 5}),
    (("text=12",), {"text": "12"}),
    (("text=a=b",), {"text": "a=b"}),
    (('text="$(touch x)"',), {"text": "$(touch x)"}),
    (("precision=bf16 compile=true",), {"precision": "bf16", "compile": True}),
])  # fmt: skip
def test_pairs(texts, expected):
    assert parse_overrides(texts, Config) == expected


@pytest.mark.parametrize("text, message", [
    ("speed=3", "expected name=value with a name out of"),
    ("steps", "expected name=value"),
    ("steps=3 and more", "found 'and more'"),
    ("steps=abc", "expected int"),
    ("steps=1.5", "expected int"),
    ("compile=1", "expected bool"),
    ("kind=three", "one"),
    ("shape=[1,2,3]", "int, int"),
    ("domains=[1]", "str"),
    ('domains=["a"', "begins like JSON"),
    ("", "expected name=value"),
    ("out=/elsewhere", "name out of"),
    ("data=/elsewhere", "name out of"),
    ("seed=3", "name out of"),
    ("profile=paper", "name out of"),
    ("resume=false", "name out of"),
])  # fmt: skip
def test_a_users_mistakes(text, message):
    with pytest.raises(InputError, match="--set") as error:
        parse_overrides((text,), Config)
    assert message in str(error.value)


def test_nothing_leads_out_of_the_folder_of_runs():
    for name in ("..", "../..", "a/b", "/tmp/x", "", ".", "~", "a b", "a\nb", "$(x)", ".git", "a\0b", "x" * 200):
        with pytest.raises(InputError, match="--name"):
            name_of_data(name, Path("/data/x"))
        with pytest.raises(InputError, match="--name"):
            name_of_data(name, None)
    assert name_of_data("retina_28.v1-b", None) == "retina_28.v1-b"
    assert name_of_data(None, Path("/data/2018LA Seg (Training)")) == "2018LA_Seg_Training_"
    assert name_of_data(None, None) == "standin"


def test_real_data_can_not_pass_as_the_stand_in():
    for name, data in ((None, Path("/data/standin")), ("standin", Path("/data/x"))):
        with pytest.raises(InputError, match="stand-in"):
            name_of_data(name, data)


def test_split_pairs_keeps_what_is_in_quotes():
    assert split_pairs("a='x=1 y' b=\"p q=r\"") == [("a", "x=1 y"), ("b", '"p q=r"')]
