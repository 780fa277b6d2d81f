"""Where a prompt stands among an input's own positions: what enters, in front of what, seen by which layers."""
