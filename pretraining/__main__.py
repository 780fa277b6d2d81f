"""Run the command: `python -m pretraining masked --corpus DIR --output DIR`."""

from .train import main

main()
