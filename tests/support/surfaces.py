"""What every page that people see must hold: it fits a phone, it can be read, and whatever a pointer can do, keys can."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

PHONE = {"width": 390, "height": 800}
CONTRAST_MIN = 4.5  # of a text; WCAG 2.2, 1.4.3
FOCUS_MIN = 3.0  # of what shows the focus against what is behind it; 1.4.11
AT_REST = "one => one.playState !== 'running' || one.effect.getTiming().iterations === Infinity"
AXE = Axe()
SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def opened(page: Page, address: str) -> None:
    """A page of the dashboard with all of its pictures drawn."""
    page.goto(address)
    is_live(page)
    page.wait_for_function("[...document.querySelectorAll('.chart')].every(one => one.querySelector('svg text'))")


def is_live(page: Page, path: str = "") -> None:
    """The dashboard's page (of that path, after a link) hears what is done on it: until NiceGUI's socket has shaken hands, a
    browser that is slow to connect may load the page once more, and what was done is gone."""
    page.wait_for_url(lambda url: urlsplit(url).path.startswith(path))
    page.get_by_role("heading", level=1).wait_for()
    page.wait_for_function("window.did_handshake")


def at_rest(page: Page) -> None:
    """What comes in or goes has arrived: until then it is half transparent, and a click may miss what moves."""
    page.wait_for_function(f"document.getAnimations().every({AT_REST})")


def ask(page: Page, question: str, *arguments: Any) -> Any:
    """The answer of a function of surfaces.js."""
    return page.evaluate(f"{SCRIPT}\nsurfaces.{question}(...{json.dumps(arguments)})")


def none(found: Iterable[object], what: str = "") -> None:
    """There is nothing of it; says what there is: outside of tests pytest does not."""
    listed = [str(one) for one in found]
    assert not listed, "\n".join([what, *listed])


def fits(page: Page) -> None:
    """Nothing sticks out of the window but what scrolls in a container of its own."""
    none(ask(page, "sticksOut"))


def can_be_read(page: Page, dialog: str = "") -> None:
    """By eyes and by screen readers: axe-core's rules of WCAG 2.2 A and AA and of good practice; of texts in pictures, which
    it does not look at, the contrast. `dialog`: what finds one that is open; axe-core takes the curtain behind it, which
    lies at z-index -1 in a layer of its own, for what lies behind its texts."""
    at_rest(page)
    options = {"resultTypes": ["violations"], "rules": {"color-contrast": {"enabled": not dialog}}}
    found = AXE.run(page, options=options).response["violations"]
    none(f"{one['id']}: {one['help']}: {node['html'][:200]} {node['failureSummary']}"
         for one in found for node in one["nodes"])  # fmt: skip
    none(ask(page, "pale", CONTRAST_MIN))
    if dialog:
        none(ask(page, "pale", CONTRAST_MIN, f"{dialog} *"))


def works_by_keyboard(page: Page) -> None:
    """Tab reaches everything that can be worked with, one sees where one is, and nothing is for pointers alone."""
    controls, pointers = ask(page, "controls")
    none(pointers, "they invite a click, and no key reaches them")
    page.evaluate("document.activeElement?.blur()")
    seen: dict[str, bool] = {}
    for _ in range(2 * len(controls) + 2):  # what scrolls may be a stop too
        page.keyboard.press("Tab")
        focus = ask(page, "focus", FOCUS_MIN)
        if focus["stop"] in seen:
            break
        if focus["stop"] is not None:
            seen[focus["stop"]] = focus["seen"]
    none((called for at, called in enumerate(controls) if str(at) not in seen), "no Tab reaches them")
    none((called for at, called in enumerate(controls) if not seen[str(at)]), "their focus is not seen")


def texts(page: Page) -> list[str]:
    """Whatever is said on the page, to eyes and to screen readers, but what is marked to stay as it is."""
    found: list[str] = ask(page, "texts")
    return found
