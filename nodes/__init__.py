"""Who does the work, and how."""

__version__ = "0.1.0"
