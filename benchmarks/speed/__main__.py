"""`make bench`: every module of this folder in turn, each printing its table.

A module has `measure() -> list[dict]`, which times ours and the alternatives in one run, taking turns, and
`table(rows) -> str`.
"""

import importlib
import pkgutil
import sys

import benchmarks.speed


def main() -> None:
    chosen = sys.argv[1:]
    for found in pkgutil.iter_modules(benchmarks.speed.__path__):
        if found.name.startswith("_") or (chosen and found.name not in chosen):
            continue
        module = importlib.import_module(f"benchmarks.speed.{found.name}")
        print(f"\n{found.name}: {module.__doc__.strip().splitlines()[0]}", flush=True)
        print(module.table(module.measure()), flush=True)


if __name__ == "__main__":
    main()
