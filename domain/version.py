"""Which release this is."""

RELEASE = "checkout-saga 0.1.0"
"""Name and version as pyproject.toml has them; an image has the code without that file."""
