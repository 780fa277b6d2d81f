"""A trained prompt in other forms: constant virtual tokens, keys and values, PEFT's own adapters."""
