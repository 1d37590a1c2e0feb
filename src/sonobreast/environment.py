"""What a run was made with (versions, processor, threads, the state of the source tree), and what it may use."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sonobreast import __version__

_PACKAGES = (
    "numpy",
    "pillow",
    "pandas",
    "scipy",
    "scikit-learn",
    "scikit-image",
    "torch",
    "torchvision",
    "timm",
    "lightning",
    "safetensors",
    "skops",
    "onnxruntime",
)


_UNKNOWN_MEMORY = 4 << 30


def home() -> Path:
    """``$SONOBREAST_HOME``, or ``~/.sonobreast``: what studies of this user share."""
    return Path(os.environ.get("SONOBREAST_HOME") or Path.home() / ".sonobreast")


def available_memory() -> int:
    """Bytes of memory that can be had without swapping; 4 GiB where the system does not tell.

    In a container with a limit (cgroup v2), what is left under the limit.
    """
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _UNKNOWN_MEMORY
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text(encoding="utf-8"))  # "max" where there is none
        used = dict(line.split() for line in (group / "memory.stat").read_text(encoding="utf-8").splitlines())
        return max(0, min(free, limit - int(used["anon"])))
    except (OSError, KeyError, ValueError):
        return free


def record() -> dict[str, Any]:
    """A description of this machine and environment for ``environment.json``.

    Names no user, host or path. The git state is that of the package's own source tree when this process first asked,
    and absent for an installed package.
    """
    content: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "sonobreast": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "packages": {name: v for name in _PACKAGES if (v := _version(name)) is not None},
        "git": _git_state(Path(__file__).resolve().parent),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        content["threads"] = torch.get_num_threads()
        content["device"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return content


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name, as the system states it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def _git_state(folder: Path) -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        if not git("ls-files", "environment.py"):
            return None  # a package installed inside somebody else's checkout
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", str(folder)))}
    except (OSError, subprocess.SubprocessError):
        return None
