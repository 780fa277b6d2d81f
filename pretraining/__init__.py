"""Small language models, started from the embedded sentence encoder; not part of the installed package."""
