"""A trained bundle at work: no torch, no training code."""
