"""textbed: text classification research around an embedding table."""

__version__ = "0.1.0"
