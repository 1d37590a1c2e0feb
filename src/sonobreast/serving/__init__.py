"""Networks in the hospital: bundles without PyTorch, and what they say as tables, pages and DICOM."""
