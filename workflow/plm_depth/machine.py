"""What this machine has: memory, processors, GPUs, disks, and how fast it multiplies; no model library is loaded."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

GPU_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Machine:
    """What is there.

    Attributes:
        memory_bytes: of this machine, or of the control group it runs in.
        gpus: name and memory in bytes of each.
        product_rate: operations a second of float32 products on one thread.
        free_bytes: a function of a path: (device of the file system, bytes free on it).
    """

    memory_bytes: float
    gpus: tuple[tuple[str, float], ...]
    product_rate: float
    free_bytes: Callable[[Path], tuple[int, float]]


def machine() -> Machine:
    """Return what this machine has; measuring its product rate takes about a quarter of a second."""
    return Machine(memory_bytes(), gpus(), product_rate(), free_bytes)


def processor() -> str:
    """Return the name of the processor as the system states it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> float:
    """Return the memory of this machine, or of the control group that this process runs in."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, float(text))
    return total


def gpus() -> tuple[tuple[str, float], ...]:
    """Return name and memory in bytes of every GPU that this process may see."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return ()
    try:
        said = subprocess.run(GPU_QUERY, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = (line.rsplit(",", 1) for line in said.splitlines() if "," in line)
    return tuple((name.strip(), float(megabytes) * 2**20) for name, megabytes in rows if megabytes.strip().isdigit())


def product_rate(seconds: float = 0.2) -> float:
    """Return the operations a second of products of float32 matrices here, on as many threads as numpy uses."""
    import numpy as np

    n = 512
    left, right = np.ones((n, n), np.float32), np.ones((n, n), np.float32)
    out = left @ right
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        started = time.perf_counter()
        np.matmul(left, right, out=out)
        times.append(time.perf_counter() - started)
    return 2 * n**3 / min(times)  # what the machine can do when nothing else runs


def free_bytes(path: Path) -> tuple[int, float]:
    """Return the file system of a path that may not exist yet, and the bytes free on it."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path.stat().st_dev, float(shutil.disk_usage(path).free)
