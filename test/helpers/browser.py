"""A real Chromium without a window, and the page of ``viewer_node`` in it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
DRIVER = shutil.which('chromedriver')
SIZE = (1000, 800)  # small: the 3-D view is drawn by the processor

# The first visible input after a label; long labels hold places to break the line at.
FIELD = """
const bare = text => text.replace(/[\\u200b\\s]/g, '');
const label = [...document.querySelectorAll('label')].find(
  one => bare(one.textContent) === bare(arguments[0]));
return [...document.querySelectorAll('input:not([type=hidden])')].find(
  one => label.compareDocumentPosition(one) & Node.DOCUMENT_POSITION_FOLLOWING);
"""


def open_browser(profile: Path, size=SIZE):
    """A driven Chromium with an empty profile folder; skips the test where there is none."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
    if not (CHROMIUM and DRIVER):
        pytest.skip('no Chromium here: apt-get install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        '--headless=new',
        '--no-sandbox',  # for root, in a container
        '--disable-background-networking',
        '--disable-dev-shm-usage',
        # WebGL by software: without it the page has no 3-D view.
        '--use-gl=angle',
        '--use-angle=swiftshader',
        '--enable-unsafe-swiftshader',
        f'--window-size={size[0]},{size[1]}',
        f'--user-data-dir={profile}',
    ):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    service = webdriver.ChromeService(DRIVER)
    return webdriver.Chrome(options=options, service=service)


class BrowserPage:
    """What a person does with the page: reads, types, clicks."""

    def __init__(self, driver, address: str):
        self.driver = driver
        driver.get(address)
        assert self.wait(lambda: self.text('banner'), 120), 'the page shows nothing'

    def text(self, identifier: str) -> str:
        """The text of one of the page's parts; empty while it is not there."""
        return self.driver.execute_script(
            'return document.getElementById(arguments[0])?.innerText ?? ""', identifier
        )

    def wait(self, condition, seconds=30.0) -> bool:
        """Whether something becomes true."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        return True

    def field(self, label: str):
        """The input beside a label."""
        return self.driver.execute_script(FIELD, label)

    def type(self, label: str, text: str) -> None:
        """Replace what a field holds, as a person would."""
        from selenium.webdriver.common.keys import Keys

        self.field(label).send_keys(Keys.CONTROL, 'a')
        self.field(label).send_keys(text)

    def click(self, label: str) -> None:
        """Press a button or choose a tab."""
        kinds = "self::button or @role='tab' or @role='radio' or self::label"
        path = f"//*[{kinds}][normalize-space(.)='{label}']"
        self.driver.find_element('xpath', path).click()

    def unfold(self, folder: str, label: str) -> None:
        """Open a folder, until the field of a label in it can be used."""
        self.driver.find_element('xpath', f"//*[text()='{folder}']").click()
        assert self.wait(lambda: self.field(label).is_displayed()), f'{folder} stays closed'

    def errors(self) -> list[str]:
        """What the browser's console complains of."""
        return [
            entry['message']
            for entry in self.driver.get_log('browser')
            if entry['level'] == 'SEVERE' and 'favicon' not in entry['message']
        ]
