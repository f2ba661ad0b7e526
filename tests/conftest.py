"""Fixtures for all tests: no network, and one small data set and one short run per paper."""

import importlib
import random
import socket
import sys

import numpy as np
import pytest
import torch

from benchmarks import ledger


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing may leave this machine: a connection to any other address fails the test."""
    connect = socket.socket.connect

    def only_local(self, address):
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost")
        assert local, f"a test tried to reach {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_local)


@pytest.fixture(autouse=True)
def seeded():
    """Every test sees the same random numbers, whichever tests ran before it in the same process."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_figure_left():
    """What a test draws it closes: an open figure is memory that is never given back, and the next test's surprise."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        left = pyplot.get_fignums()
        pyplot.close("all")
        assert not left, f"{len(left)} figures were left open"


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory):
    """slug -> folder of its smallest stand-in, made once."""
    made = {}

    def make(slug: str):
        if slug not in made:
            folder = tmp_path_factory.mktemp(slug) / "standin"
            importlib.import_module(f"benchmarks.standins.{slug}").generate(folder, size="smoke", seed=0)
            made[slug] = folder
        return made[slug]

    return make


@pytest.fixture(scope="session")
def smoke_watched(tmp_path_factory, smoke_data):
    """(slug, variant) -> folder of a finished smoke run of the variant, trained once, and what was seen in it."""
    from tests.smoke import train_variant, watching

    made = {}

    def run(slug: str, variant: str | None = None):
        variant = variant or proposed(slug)
        if (slug, variant) not in made:
            folder = tmp_path_factory.mktemp(f"{slug}-{variant}") / "run"
            needs = {item["name"]: item.get("needs") for item in ledger.load_paper(slug)["variant"]}
            init = run(slug, needs[variant])[0] / "checkpoint.pt" if needs[variant] else None
            with watching() as seen:
                train_variant(slug, variant, smoke_data(slug), folder, init=init)
            made[slug, variant] = folder, seen
        return made[slug, variant]

    return run


@pytest.fixture(scope="session")
def smoke_run(smoke_watched):
    """(slug, variant) -> folder of a finished smoke run of the variant."""
    return lambda slug, variant=None: smoke_watched(slug, variant)[0]


def proposed(slug: str) -> str:
    """Name of the variant that is the paper's method."""
    return next(item["name"] for item in ledger.load_paper(slug)["variant"] if item["role"] == "proposed")
