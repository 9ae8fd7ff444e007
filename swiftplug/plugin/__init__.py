"""The public API for plugin authors."""
