"""Headless Chromium for tests: pages as a person gets them, with what the console says and what is asked for.

A test module imports the fixture `browser`, one window for all its tests, and marks them with `requires_chromium`.
"""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
PACKAGES = "apt-get install chromium chromium-driver"

requires_chromium = pytest.mark.skipif(
    CHROMIUM is None or CHROMEDRIVER is None,
    reason=f"no {'chromium' if CHROMIUM is None else 'chromedriver'} on this machine: {PACKAGES}",
)

_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # root, as in most containers, may not have one
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)


class Browser:
    """One window. What console and network reported is collected from all its pages until it is asked for."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str | Path) -> None:
        """A file or a URL; what earlier pages reported is forgotten."""
        self.driver.get("about:blank")
        self.console()
        self.requests()
        self.driver.get(address.resolve().as_uri() if isinstance(address, Path) else address)

    def console(self, level: str | None = None) -> list[str]:
        """Messages since the last call; of one level (`SEVERE`: errors, what a policy or the network refused)."""
        return [e["message"] for e in self.driver.get_log("browser") if level is None or e["level"] == level]

    def errors(self) -> list[str]:
        """`console` of what a person would see in red."""
        return self.console("SEVERE")

    def requests(self) -> list[str]:
        """Every address asked for since the last call, refused ones too; the page itself is the first."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = (event["params"] for event in events if event["method"] == "Network.requestWillBeSent")
        return [parameters["request"]["url"] for parameters in sent]

    def find(self, selector: str) -> WebElement:
        """The first element of a CSS selector; raises selenium's NoSuchElementException."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self) -> str:
        """What is visible of the page, in words."""
        return self.find("body").text

    def run(self, script: str, *arguments: Any) -> Any:
        """JavaScript; `return` gives the value, `arguments` holds the others."""
        return self.driver.execute_script(script, *arguments)

    def resize(self, width: int, height: int) -> None:
        """The page's own size in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def prefer(self, **features: str) -> None:
        """Media features, `color_scheme="dark"`; none: as the system has them."""
        wanted = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})

    def screenshot(self, file: Path, *, height: int | None = None) -> Path:
        """A PNG of the window, or of the page's first `height` CSS pixels, however far down they reach."""
        request: dict[str, Any] = {"format": "png", "captureBeyondViewport": height is not None}
        if height is not None:
            width = self.run("return window.innerWidth")
            request["clip"] = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", request)["data"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(picture))
        return file


@contextmanager
def chromium(width: int = 1200, height: int = 900) -> Iterator[Browser]:
    """A fresh window without cookies or cache; needs `requires_chromium`. No host but this one can be reached."""
    options = Options()
    options.binary_location = CHROMIUM or ""
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # With both paths given Selenium Manager, which downloads browsers, is never asked.
    driver = webdriver.Chrome(options=options, service=Service(executable_path=CHROMEDRIVER))
    try:
        opened = Browser(driver)
        opened.resize(width, height)
        yield opened
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One window for a module; import it into the module that uses it."""
    with chromium() as opened:
        yield opened
