"""Train, compare, check and serve classifiers for breast ultrasound. Research use only, not a medical device."""

import os

__version__ = "0.1.0"

# ONNX Runtime (from 1.29) sends usage data to its maker and keeps an identifier of the machine, unless it is told not
# to before it starts. Nothing leaves a hospital because of this software.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
