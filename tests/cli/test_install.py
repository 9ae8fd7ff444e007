"""`swiftplug install` and `uninstall` in an environment of their own, from a wheel, without a network."""

import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from swiftplug.cli.install import install, instead_of_pip
from swiftplug.cli.uninstall import uninstall
from swiftplug.errors import UserError


def write_wheel(folder: Path, version: str) -> None:
    """A distribution with a loss, as `pip wheel` would build it."""
    info = f"acme_plugins-{version}.dist-info"
    files = {
        "acme_plugins.py": 'def poly(outputs, labels, *, epsilon: float = 1.0):\n    """Poly."""\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: acme-plugins\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[swiftplug.losses]\npoly = acme_plugins:poly\n",
    }
    with ZipFile(folder / f"acme_plugins-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]))


def test_a_package_comes_and_goes(tmp_path: Path) -> None:
    pytest.importorskip("pip", reason="an environment of uv has no pip")
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    [site] = (tmp_path / "env").glob("lib/python*/site-packages")
    root = Path(__file__).parents[2]
    (site / "base.pth").write_text("\n".join([str(root), *(path for path in sys.path if path.endswith("packages"))]))
    write_wheel(tmp_path, "1.0")

    def run(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(tmp_path / "env" / "bin" / "python"), "-m", "swiftplug", *arguments]
        return subprocess.run(command, capture_output=True, text=True, input=answer, cwd=tmp_path)

    done = run("install", "--no-index", "--find-links", str(tmp_path), "acme-plugins")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == [
        "Plugins that came:",
        "  --loss poly  Poly.",
        "Next: swiftplug show-plugin poly",
    ]
    assert (site / "acme_plugins.py").is_file()
    done = run("install", "--no-index", "no-such-package")
    assert done.returncode == 1
    assert "No matching distribution found for no-such-package" in done.stderr
    assert "Plugins that came" not in done.stdout
    done = run("uninstall", "acme-plugins", answer="n\n")
    assert "Proceed" in done.stdout
    assert (site / "acme_plugins.py").is_file()
    done = run("uninstall", "acme-plugins")
    assert done.returncode == 2
    assert done.stderr == "error: uninstall asks before it removes anything, and there is no input; add -y\n"
    assert (site / "acme_plugins.py").is_file()
    done = run("uninstall", "-y", "acme-plugins")
    assert done.returncode == 0, done.stderr
    assert not (site / "acme_plugins.py").exists()


@pytest.mark.parametrize(
    ("file", "text", "arguments", "expected"),
    [
        ("uv-receipt.toml", "[tool]\n", ["acme", "b c"], "uv tool install {name} --with acme --with 'b c'"),
        ("pipx_metadata.json", "{}", ["acme", "-U"], "pipx inject {name} acme -U"),
        ("pyvenv.cfg", "home = /usr\nuv = 0.9.1\n", ["acme"], "uv pip install --python {python} acme"),
        ("pyvenv.cfg", "home = /usr\n", ["acme"], "{python} -m ensurepip, and again swiftplug install acme"),
    ],
)
def test_without_pip_the_command_is_named(
    file: str, text: str, arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / file).write_text(text)
    hint = instead_of_pip("install", arguments, tmp_path)
    assert hint.startswith(expected.format(name=tmp_path.name, python=sys.executable))
    monkeypatch.setattr("swiftplug.cli.install.find_spec", lambda name: None)
    for command in (install, uninstall):
        with pytest.raises(UserError, match="there is no pip in swiftplug's environment; use: "):
            command(arguments)
