"""A trained model and images: what it says, and on whom it holds."""
