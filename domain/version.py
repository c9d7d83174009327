"""Which release this is."""

RELEASE = "checkout-saga 0.1.0"
"""The application's name and version. The library beside it has its own, in pyproject.toml."""
