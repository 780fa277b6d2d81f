"""A saved adapter: what its folder must hold, its prompt without a backbone, and which backbone it belongs to."""
