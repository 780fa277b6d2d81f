"""What is asked of a run: flat keys, their values as YAML has them, and their meaning in words."""
