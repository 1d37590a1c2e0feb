"""Images in: readers of the published layouts, the manifest, splits, preprocessing."""
