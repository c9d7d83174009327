"""Which release this is."""

NAME = "checkout-saga"
VERSION = "0.1.0"
"""As pyproject.toml has it; an image has the code without that file."""
