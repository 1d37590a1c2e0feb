"""Networks in the hospital: bundles without PyTorch, predictions from them."""
