"""What the service counts, as Prometheus reads it (text format 0.0.4).

Written by hand: the format is a few lines, and a hospital's install stays one library smaller. Nothing that is counted
is about a patient: labels are routes, status codes, outcomes and the bundle's classes.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Mapping

TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_HELP = {
    "sonobreast_requests_total": "Requests answered, by route and status.",
    "sonobreast_images_total": "Images by outcome: predicted, refused, failed.",
    "sonobreast_predicted_total": "Images predicted, by most probable class.",
    "sonobreast_abstained_total": "Images whose conformal set is not one class.",
    "sonobreast_outside_domain_total": "Images unlike the training images.",
    "sonobreast_overload_total": "Requests answered 429.",
}
Labels = tuple[tuple[str, str], ...]


class Counters:
    """May be used by several threads."""

    def __init__(self, bundle: Mapping[str, str]) -> None:
        self._bundle = tuple(bundle.items())
        self._lock = threading.Lock()
        self._counts: dict[str, dict[Labels, int]] = {name: defaultdict(int) for name in _HELP}
        self._buckets = [0] * len(SECONDS)
        self._sum, self._n = 0.0, 0

    def add(self, name: str, **labels: str) -> None:
        """Count one; the names are those of ``_HELP``."""
        with self._lock:
            self._counts[name][tuple(labels.items())] += 1

    def took(self, seconds: float) -> None:
        """A request for a prediction that was answered 200 or 422 took so long."""
        with self._lock:
            self._sum, self._n = self._sum + seconds, self._n + 1
            for k, bound in enumerate(SECONDS):
                if seconds <= bound:
                    self._buckets[k] += 1

    def text(self, gauges: Mapping[str, float]) -> str:
        """Everything; ``gauges`` are values of this moment by name."""
        lines: list[str] = []
        with self._lock:
            for name, about in _HELP.items():
                lines += [f"# HELP {name} {about}", f"# TYPE {name} counter"]
                found = self._counts[name] or {(): 0}
                lines += [f"{name}{_labels(labels)} {n}" for labels, n in sorted(found.items())]
            name = "sonobreast_predict_seconds"
            lines += [f"# HELP {name} Time of a request for predictions.", f"# TYPE {name} histogram"]
            lines += [f'{name}_bucket{{le="{b:g}"}} {n}' for b, n in zip(SECONDS, self._buckets, strict=True)]
            lines += [f'{name}_bucket{{le="+Inf"}} {self._n}', f"{name}_sum {self._sum:.6f}", f"{name}_count {self._n}"]
        for name, value in {**gauges, "process_resident_memory_bytes": float(resident_bytes())}.items():
            lines += [f"# TYPE {name} gauge", f"{name} {value:g}" if value < 1e6 else f"{name} {value:.0f}"]
        lines += ["# TYPE sonobreast_bundle_info gauge", f"sonobreast_bundle_info{_labels(self._bundle)} 1"]
        return "\n".join(lines) + "\n"


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = ((k, v.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for k, v in labels)
    return "{" + ",".join(f'{k}="{v}"' for k, v in escaped) + "}"
