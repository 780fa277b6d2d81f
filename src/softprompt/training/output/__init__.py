"""What a run writes and leaves: its folder, checkpoints, result, card, and the way to the hub."""
