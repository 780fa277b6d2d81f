"""``softprompt demo``: its options, the arms that it compares, and a prompt for each tone."""

from .command import demo as demo
