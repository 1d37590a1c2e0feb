"""A bundle that runs tells nobody, and leaves nothing in the user's home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sonobreast.serving.bundle import Bundle

_RUN = """
import sys, time
from pathlib import Path
from sonobreast.serving.bundle import SELF_TEST_IMAGE
from sonobreast.serving.predictor import load_predictor
folder = Path(sys.argv[1])
print(load_predictor(folder, threads=1).probability(folder / SELF_TEST_IMAGE).sum())
time.sleep(1.0)  # an uploader works in a thread of its own
import os
for name in os.listdir("/proc/self/fd"):
    try:
        link = os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        continue
    assert not link.startswith("socket:"), link
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open sockets are seen on Linux only")
def test_the_runtime_sends_nothing_and_keeps_no_identifier(ensemble: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime's own telemetry would write a device identifier and open a connection; it stays silent where CI is
    named in the environment, so the names that continuous integrations set are taken away."""
    kept = {k: os.environ[k] for k in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if k in os.environ}
    kept |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(ensemble.folder)], env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(1.0)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
