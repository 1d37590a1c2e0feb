"""Train, compare, check and serve classifiers for breast ultrasound. Research use only, not a medical device."""

__version__ = "0.1.0"
