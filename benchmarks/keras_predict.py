"""One image through Keras' ``model.predict``, as one would write it: Pillow decodes and resizes, MobileNetV2 predicts.

    benchmarks/.keras/bin/python benchmarks/keras_predict.py IMAGE

Runs in an environment of its own (`make bench-keras`) and is started by ``service.py``. For each line with a number n
on standard input it predicts n times and prints the milliseconds of each, and the processor's of all, as one JSON line.
The network has random weights: the time is the same.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from PIL import Image


def main() -> None:
    content = Path(sys.argv[1]).read_bytes()
    network = keras.applications.MobileNetV2(weights=None, classes=3)
    for line in sys.stdin:
        taken, spent = [], time.process_time()
        for _ in range(int(line)):
            began = time.perf_counter()
            image = Image.open(io.BytesIO(content)).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
            network.predict(np.asarray(image, np.float32)[None] / 255.0, verbose=0)
            taken.append(1000.0 * (time.perf_counter() - began))
        print(json.dumps({"ms": taken, "processor_ms": 1000.0 * (time.process_time() - spent)}), flush=True)


if __name__ == "__main__":
    main()
