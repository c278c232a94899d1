"""The image of the page for the README: opens it in Chromium and takes a screenshot.

    . scripts/env.sh && python scripts/view_image.py http://127.0.0.1:8080 docs/view.png

on the page of a running ``make demo ARGS="--stay"``. With ``--say`` it gives an instruction first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / 'test' / 'helpers'))
from browser import BrowserPage, open_browser

SIZE = (1400, 1000)
WARNING = "//*[text()='Software WebGL rendering detected']/following::button[1]"


def saved(driver: Any, file: Path) -> bool:
    """Take it; whether that was quick enough for Chromium, which gives up after 10 s."""
    from selenium.common.exceptions import TimeoutException

    try:
        return driver.save_screenshot(str(file))
    except TimeoutException:
        return False


def main() -> int:
    """Take it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('address')
    parser.add_argument('file', type=Path)
    parser.add_argument('--say', default='', help='an instruction to give first')
    parser.add_argument('--wait', type=float, default=8.0, help='seconds until the image is taken')
    parser.add_argument('--colours', type=int, default=255, help='of the PNG file')
    args = parser.parse_args()
    driver = open_browser(Path(tempfile.mkdtemp()), SIZE)
    try:
        page = BrowserPage(driver, args.address)
        for button in driver.find_elements('xpath', WARNING):
            button.click()
        if args.say:
            page.type('Instruction', args.say)
            page.click('Send')
        time.sleep(args.wait)
        while not saved(driver, args.file):
            pass
    finally:
        driver.quit()
    image = Image.open(args.file).convert('RGB')
    image.quantize(args.colours, dither=Image.Dither.NONE).save(args.file, optimize=True)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
