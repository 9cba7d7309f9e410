"""`python -m tests.pictures`: the README's pictures, of a demo that stays up (`make demo KEEP=1`). Chinese needs a font that
has its characters (Debian: fonts-noto-cjk)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.support.needs import absent, program
from tests.support.surfaces import PHONE, opened

FOLDER = Path(__file__).parents[1] / "docs" / "img"
DESK = {"width": 1280, "height": 760}


def shop(page: Page, url: str) -> None:
    """After two clicks: what is recommended has changed, and says why."""
    page.emulate_media(reduced_motion="reduce")  # no picture of something that is on its way
    page.goto(url)
    for number in (0, 5):
        page.locator("#shelf .open").nth(number).click()
        page.locator("#freshness", has_text="after your click").wait_for()
        page.keyboard.press("Escape")
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=FOLDER / "shop.png")


def dashboard(page: Page, url: str) -> None:
    """Live traffic, segments, satisfaction; all of somebody who is alerted about; in Chinese, on a phone in the dark."""
    for name, path in (("live", "/"), ("segments", "/segments"), ("satisfaction", "/satisfaction")):
        opened(page, f"{url}{path}")
        page.screenshot(path=FOLDER / f"dashboard-{name}.png")
    opened(page, f"{url}/churn")
    user = page.locator("a[href*='/users/']:not(nav a)").first.inner_text()
    opened(page, f"{url}/users/{user}")
    page.set_viewport_size(DESK | {"height": 1_400})
    page.screenshot(path=FOLDER / "dashboard-user.png")
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme="dark")
    for name, path in (("live", "/"), ("churn", "/churn")):
        opened(page, f"{url}{path}?lang=zh")
        page.screenshot(path=FOLDER / f"dashboard-{name}-zh.png")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shop", default="http://127.0.0.1:8070", help="default: %(default)s")
    parser.add_argument("--dashboard", default="http://127.0.0.1:8060", help="default: %(default)s")
    asked, path = parser.parse_args(), program("chromium")
    if path is None:
        print(absent("chromium"), file=sys.stderr)
        return 1
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for take, url in ((shop, asked.shop), (dashboard, asked.dashboard)):
            with browser.new_context(viewport=DESK) as context:
                take(context.new_page(), url)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
