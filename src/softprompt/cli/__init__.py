"""Floor 8: the command line."""

from .signals import stoppable


def main() -> None:
    """Run the command line; the package behind it is imported where a stop is already met with one line."""
    with stoppable():
        from .app import run

        run()
