"""The machine that a result is measured on: cores, processor, library versions, what a process has used."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version


def cores() -> int:
    """CPU cores that this process may use; where the system can't say (macOS), those that there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_device(device: str) -> str:
    """The processor or GPU that a run with `--device device` uses, in words."""
    if device != "cpu":
        try:
            names = subprocess.run(
                ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                encoding="utf-8",
            ).stdout.split("\n")
            if names[0].strip():
                return names[0].strip()
        except OSError:
            pass
    return f"{cores()} CPU cores"


def versions() -> dict[str, str]:
    """Python, and the libraries that numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for name in ("torch", "numpy", "scipy", "scikit-image"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def usage() -> dict[str, float]:
    """What this process has used up to now.

    Returns:
        `processor_seconds`, user and system time with that of the child processes that have ended; `memory_mb`, the
        peak of this process [MiB]; `gpu_memory_mb`, the peak of its tensors on a GPU [MiB], if it used one.
    """
    import resource

    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts the peak in bytes, Linux in KiB
    used = {
        "processor_seconds": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        "memory_mb": own.ru_maxrss / unit,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        used["gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return used
