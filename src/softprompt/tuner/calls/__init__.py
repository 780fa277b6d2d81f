"""A call of the model or of its stack, read once: what it gives, what it asks for, what hooks see of it."""
