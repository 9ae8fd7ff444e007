"""The loss scales that ship."""
