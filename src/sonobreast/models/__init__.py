"""Networks: names of the papers, weights, heads."""
