"""``python -m softprompt``."""

from .cli import main

main()
