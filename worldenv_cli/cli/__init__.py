"""The command line; `worldenv` is `main`."""

from .main import app, main

__all__ = ["app", "main"]
