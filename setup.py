"""What pyproject.toml cannot do: README for a package index, where its links to other files would lead nowhere."""

import re
from pathlib import Path

from setuptools import setup

readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"!\[([^]]+)\]\((?!https?:)[^)]+\)", r"*\1*", readme)  # a picture: what it shows
setup(
    long_description=re.sub(r"\[([^]]+)\]\((?!https?:)[^)]+\)", r"\1", readme),
    long_description_content_type="text/markdown",
)
