"""Floor 8: the command line."""

from .signals import stoppable


def main() -> None:
    """Run the command line; it imports the package only where a signal to stop already gives one line."""
    with stoppable():
        from .app import run

        run()
