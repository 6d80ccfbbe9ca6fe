"""The page ``/demo`` in a real browser: headless Chromium, driven by Selenium.

``apt-get install chromium chromium-driver`` and ``pip install selenium`` bring what it
needs; without them these tests are skipped, and say so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..processes import wait_until
from ..test_web_supervisor import Service

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver
from selenium.webdriver.common.keys import Keys

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
DEADLINE_S = 60.0
VARIANTS = [
    "plain-global",
    "global-with-lock",
    "stock-manager",
    "session-cookie",
    "shared-object",
]

pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason=f"no browser: chromium is {BROWSER}, chromedriver is {DRIVER}",
)


class Page:
    """The page in one browser window, as a visitor has it."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        browser.get(address)

    def all(self, selector: str) -> list[Any]:
        """Return the elements that a CSS selector finds."""
        return self.browser.find_elements("css selector", selector)

    def script(self, text: str) -> Any:
        """Return what a script in the page returns."""
        return self.browser.execute_script(text)  # type: ignore[no-untyped-call]

    def until_done(self) -> None:
        """Wait until the run is over."""
        wait_until(
            lambda: self.script("return document.body.dataset.state") == "done",
            DEADLINE_S,
            "the end of the run",
        )

    def results(self) -> dict[str, dict[str, str]]:
        """Return the rows of the table of results, by variant and field."""
        found = self.script(
            "return [...document.querySelectorAll('#summary tbody tr')].map("
            "row => [row.dataset.variant, [...row.querySelectorAll('td')]"
            ".map(cell => [cell.dataset.field, cell.innerText])])"
        )
        return {variant: dict(fields) for variant, fields in found}

    def answers(self, variant: str) -> list[tuple[int, int]]:
        """Return number and process of each answer, from the list of a variant."""
        rows = self.script(
            f"return [...document.querySelectorAll('#{variant} details tbody tr')]"
            ".map(row => [...row.cells].map(cell => cell.textContent))"
        )
        return [(int(number), int(process)) for _, number, process, _ in rows]

    def is_wider_than_the_window(self) -> bool:
        """Tell whether the page would have to be scrolled sideways."""
        return bool(
            self.script(
                "return document.documentElement.scrollWidth"
                " > document.documentElement.clientWidth"
            )
        )

    def console(self) -> list[Any]:
        """Return what the browser complained about."""
        return list(self.browser.get_log("browser"))  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """Give a browser for all tests of this file."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for option in (
        "--headless=new",
        # Its sandbox and its shared memory are not to be had in a container.
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
    ):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(DRIVER))
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    browser.quit()


def emulate(browser: webdriver.Chrome, width: int, scheme: str) -> None:
    """Give the window a width, and the visitor a preference for light or dark."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Give a function that starts the default app; all of it ends with the test."""
    services: list[Service] = []

    def start_one(*options: str) -> str:
        services.append(Service(tmp_path, *options))
        return f"http://127.0.0.1:{services[-1].until_ready().port}/demo"

    yield start_one
    for service in services:
        service.clear_away()


def test_run_shows_what_becomes_of_the_numbers(
    browser: webdriver.Chrome, start: Any
) -> None:
    """Two workers: the shared object gives 1 to 100, each once; a global does not.

    The run is started from the keyboard, ends, and leaves the console empty. Asking
    again counts from 1 again.
    """
    emulate(browser, 1280, "light")
    page = Page(browser, start("--workers", "2"))
    for _ in range(20):
        focused = browser.switch_to.active_element
        if focused.get_attribute("id") == "run":
            break
        focused.send_keys(Keys.TAB)
    focused.send_keys(Keys.ENTER)
    until_both_workers_answered(page)
    check_results_of_two_workers(page)
    page.all("#run")[0].click()
    until_both_workers_answered(page)
    check_results_of_two_workers(page)
    drawn = page.script(
        "return [...document.querySelectorAll('#shared-object .numbers rect')]"
        ".map(cell => cell.getAttribute('class'))"
    )
    assert drawn == ["once"] * 100
    elsewhere = page.script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
        ".filter(name => new URL(name).origin !== location.origin)"
    )
    assert elsewhere == []
    assert page.console() == []


def until_both_workers_answered(page: Page) -> None:
    """Wait for the run, and ask again when one worker got all connections.

    The system deals them out as it likes; on a busy machine all may go to one.
    """
    for _ in range(10):
        page.until_done()
        if {result["processes"] for result in page.results().values()} == {"2"}:
            return
        page.all("#run")[0].click()
    raise AssertionError("one worker never answers")


def check_results_of_two_workers(page: Page) -> None:
    """Compare the table of results and the lists of answers with what must come."""
    results = page.results()
    assert list(results) == VARIANTS
    assert {result["failed"] for result in results.values()} == {"0"}

    shared = page.answers("shared-object")
    assert sorted(number for number, _ in shared) == list(range(1, 101))
    assert results["shared-object"]["once"] == "100"
    assert results["shared-object"]["more"] == "0"
    for name in ("plain-global", "global-with-lock"):
        numbers = [number for number, _ in page.answers(name)]
        assert len(numbers) == 100
        assert len(set(numbers)) < 100
        assert int(results[name]["more"]) > 0
        assert int(results[name]["skipped"]) > 0
    assert int(results["session-cookie"]["more"]) > 0
    assert not page.all("#note")[0].is_displayed()


def test_one_process_is_called_what_it_is(
    browser: webdriver.Chrome, start: Any
) -> None:
    """With one worker there is one global variable, and the page says so.

    Narrow and dark, nothing sticks out sideways, before and after the run.
    """
    emulate(browser, 360, "dark")
    page = Page(browser, start("--workers", "1"))
    assert not page.is_wider_than_the_window()
    red, green, blue = page.script(
        "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"
    )[:3]
    assert max(int(red), int(green), int(blue)) < 60
    page.all("#run")[0].click()
    page.until_done()
    assert page.all("#note")[0].is_displayed()
    assert page.results()["shared-object"]["once"] == "100"
    assert {result["processes"] for result in page.results().values()} == {"1"}
    assert not page.is_wider_than_the_window()
    assert page.console() == []


@pytest.mark.parametrize(
    ("width", "last"),
    [(1280, "#summary tbody tr:last-child"), (400, "#summary h2")],
)
def test_the_first_screen_has_button_and_results(
    browser: webdriver.Chrome, start: Any, width: int, last: str
) -> None:
    """Whoever presses the button sees what comes of it, and nothing moves the page.

    In a wide window that is the whole summary, in a narrow one its beginning.
    """
    emulate(browser, width, "light")
    page = Page(browser, start("--workers", "1"))
    for selector in ("#run", "#status", last):
        bottom = page.script(
            f"return document.querySelector('{selector}')"
            ".getBoundingClientRect().bottom"
        )
        assert bottom < 900, selector
    assert "State Server" in page.all("header")[0].text


def test_variants_that_fail_say_why(
    browser: webdriver.Chrome, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that are refused are counted, and the page shows the server's words."""
    monkeypatch.setenv("FLASK_DEMO_REQUESTS_MAX", "60")
    monkeypatch.setenv("FLASK_DEMO_REQUESTS_PER_S", "0.001")
    emulate(browser, 1280, "light")
    page = Page(browser, start("--workers", "1"))
    page.all("#run")[0].click()
    page.until_done()
    # The first sixty requests of this worker are let through: 12 to warm up, 48 more.
    first, *others = page.results().values()
    assert first["failed"] == "52"
    assert {result["failed"] for result in others} == {"100"}
    words = [verdict.text for verdict in page.all(".verdict")]
    assert len(words) == 5
    assert all("Too many requests" in text for text in words)
