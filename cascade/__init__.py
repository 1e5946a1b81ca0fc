"""The project: what this process is, its settings and its command line."""

from nodes import __version__

__all__ = ["__version__"]
