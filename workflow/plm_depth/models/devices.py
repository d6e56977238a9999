"""Which GPU a process works on: a free one of those it may see, for itself alone.

Jobs that start side by side on a machine with several GPUs would all take the first. So a process locks the one that it
takes: a lock on a file named after the device, which the system releases when the process ends, however it ends. Only
visible devices count (CUDA_VISIBLE_DEVICES, which Slurm sets to what it assigned), and a device is known by its UUID,
because two processes may number the same ones differently. Processes of other users, and programs that do not ask here,
are not known.
"""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

NO_GPU = ("-1", "NoDevFiles", "none")  # values of the variables that name devices, which mean: none
_held: dict[str, int] = {}  # device -> open lock file; of this process, until it ends


def claimed(name: str, *, log: logging.Logger | None = None) -> str:
    """Return the device to work on; for a GPU, wait until one is free and keep it until this process ends.

    Args:
        name: ``cpu``, ``cuda`` (any visible one) or ``cuda:N`` (that one).
        log: told which one, that it waits, and that a GPU which a scheduler gave is not used.
    Returns:
        ``cpu`` or ``cuda:N``. The same device again for a process that has one.
    """
    if not name.startswith("cuda"):
        given = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("SLURM_JOB_GPUS") or NO_GPU[0]
        if given not in NO_GPU and log is not None:
            log.warning(
                f"a GPU was given to this job ({given}), but it works on the CPU: torch sees none (a build without "
                "CUDA, no driver), or compute.device says so; with compute.device: cuda it stops instead"
            )
        return name
    import torch

    found = identities()
    wanted = [int(name.split(":")[1])] if ":" in name else range(len(found))
    number = claim([found[i] for i in wanted], log=log or logging.getLogger(__name__))
    device = wanted[number]
    torch.cuda.set_device(device)
    return f"cuda:{device}"


def identities() -> list[str]:
    """Return what tells the visible CUDA devices apart on this machine, in CUDA's order."""
    import torch

    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


def claim(devices: Sequence[str], *, log: logging.Logger, folder: Path | None = None, poll_s: float = 1.0) -> int:
    """Return the number of a device that no other process of this user has claimed; wait until there is one.

    Args:
        devices: what tells them apart.
        log: told which one, and once that it waits.
        folder: of the lock files; one of the user's in the machine's own temporary folder by default.
        poll_s: seconds between looks.
    Raises:
        ValueError: no device to choose from.
    """
    if not devices:
        raise ValueError("no GPU is visible to this process (CUDA_VISIBLE_DEVICES); use --device cpu")
    for number, device in enumerate(devices):
        if device in _held:
            return number
    folder = folder or Path(tempfile.gettempdir()) / f"plm-depth-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    is_waiting = False
    while True:
        for number, device in enumerate(devices):
            file = _locked(folder / f"{device.replace('/', '_')}.lock")
            if file is not None:
                _held[device] = file
                log.info(f"works on GPU {number} of {len(devices)} ({device})")
                return number
        if not is_waiting:
            log.info(f"all {len(devices)} GPUs are taken by other jobs; waits for one")
            is_waiting = True
        time.sleep(poll_s)


def _locked(path: Path) -> int | None:
    """Return an open file under an exclusive lock, None if another process has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file
