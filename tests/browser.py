"""A real browser, driven over the pipe of its debugging protocol: pages are opened, keys are pressed, scripts ask."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page of a headless Chromium.

    See https://chromedevtools.github.io/devtools-protocol: messages are JSON with a zero byte behind each; the browser
    reads them from its file descriptor 3 and answers on 4.
    """

    def __init__(self, folder: Path) -> None:
        to_browser, self._commands = os.pipe()
        self._answers, from_browser = os.pipe()
        options = [
            "--headless",
            "--disable-gpu",
            "--no-sandbox",
            "--allow-pre-commit-input",  # keys pressed before a page is first painted are otherwise dropped
            f"--user-data-dir={folder}",
            "--remote-debugging-pipe",
        ]
        # The shell lays the pipes on 3 and 4, whatever numbers they have here (`<&` takes one digit only).
        self._process = subprocess.Popen(
            [
                "sh",
                "-c",
                f'exec "$@" 3</dev/fd/{to_browser} 4>/dev/fd/{from_browser}',
                "sh",
                str(CHROMIUM),
                *options,
                "about:blank",
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._count, self._buffer, self.events = 0, b"", []
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.send(f"{domain}.enable")
        self.send("Page.setLifecycleEventsEnabled", enabled=True)

    events: list[dict[str, Any]]
    """What the page has reported since it was opened: requests, logs, errors, dialogs."""

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Give a command and wait for its result."""
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._answers, 1 << 20)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, url: str) -> None:
        """Open a page, afresh even where only the fragment differs, and wait until it has loaded."""
        for each in ("about:blank", url):
            self.events.clear()
            loader = self.send("Page.navigate", url=each)["loaderId"]
            while not any(self._is_load(event, loader) for event in self.events):
                self.events.append(self._read())

    @staticmethod
    def _is_load(event: dict[str, Any], loader: str) -> bool:
        """Whether the page meant has loaded: the event of the page before it may come late."""
        page = event["params"]
        return event["method"] == "Page.lifecycleEvent" and (page["name"], page["loaderId"]) == ("load", loader)

    def ask(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """The texts of the elements that a selector finds, white space as a single blank."""
        found = self.ask(f"[...document.querySelectorAll({json.dumps(selector)})].map((node) => node.textContent)")
        return [" ".join(text.split()) for text in found]

    def press(self, key: str) -> None:
        """Press a key, and type it where it is a letter."""
        text = {"text": key} if len(key) == 1 else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, selector: str) -> None:
        """Click an element."""
        self.ask(f"document.querySelector({json.dumps(selector)}).click()")

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        """Make the window as large, in a light or dark scheme."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot")["data"])

    def close(self) -> None:
        """End the browser."""
        self._session = None
        self.send("Browser.close")
        self._process.wait(timeout=20)
        os.close(self._commands)
        os.close(self._answers)
