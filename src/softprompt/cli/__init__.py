"""Floor 6: the command line."""

from .app import main as main
