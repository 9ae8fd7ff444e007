"""What README links and shows; `test_docs.py` runs its commands and code."""

import importlib.metadata
import re
from pathlib import Path

import pytest

from swiftplug.config.load import load_train_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "plugins_example/README.md"]


def block(language: str, holding: str) -> str:
    (found,) = (it for it in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if holding in it)
    return str(found)


def test_the_config_is_one(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(block("yaml", "output_dir"))
    config = load_train_config(str(path), {}, []).config
    assert config.training == {"learning_rate": 1e-4, "num_train_epochs": 1}
    assert [metric.name for metric in config.metrics] == ["acc", "nlg"]


def test_every_page_of_the_site_is_linked() -> None:
    pages = {
        str(page.relative_to(ROOT)) for part in ("tutorial", "kinds", "how_to") for page in ROOT.glob(f"docs/{part}/*")
    }
    assert pages == set(re.findall(r"\]\((docs/[^)]+\.md)\)", README))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / page).read_text())
    assert links
    assert [link for link in links if not (folder / link).exists()] == []


def test_a_package_index_shows_it_without_links_that_lead_nowhere() -> None:
    shown = importlib.metadata.metadata("swiftplug")["Description"]
    assert "\nplugins_example has one of every kind to copy from" in shown
    assert set(re.findall(r"\]\(([^)]*)\)", shown)) == set(re.findall(r"\]\((https:[^)]*)\)", README))
    assert "![" not in shown
    assert "\n*The report of a training" in shown
