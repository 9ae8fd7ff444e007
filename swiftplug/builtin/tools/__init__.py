"""The tools formats that ship."""
