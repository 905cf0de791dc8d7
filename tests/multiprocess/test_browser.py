"""The page as a person sees it, in headless Chromium."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckpt_transport_torch import TorchEngine
from tests.fleet import model
from tests.patience import DEADLINE
from tests.support.browser import CHROMIUM, MISSING, Page, browser
from tests.support.pages import TOKEN, shown
from tests.support.slow import SlowEngine

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """One page for all tests: it takes seconds to start."""
    with browser() as opened:
        yield opened


@contextmanager
def looking_at(page: Page) -> Iterator[None]:
    """While the block runs, no script fails, and the policy keeps nothing of ours out. The page is left then."""
    page.complaints.clear()
    yield
    page.open("about:blank")
    assert page.complaints == []


def test_given_a_page_that_is_open_when_an_update_runs_then_it_shows_that_without_being_loaded_again(
    page: Page,
) -> None:
    slow = SlowEngine(model(1, 6))
    slow.waits_at = 1
    with shown(slow) as fleet, looking_at(page):
        page.open(f"{fleet.url}/")
        page.evaluate("window.stays = true")
        assert "1 serves v1" in page.text()
        update = threading.Thread(target=fleet.bring, args=("step-2",))
        update.start()
        try:
            page.wait_for("document.body.innerText.includes('step-2 is on its way')")
            page.wait_for("document.querySelector('.card tbody th').innerText === 'source 0'")
        finally:
            slow.may_go_on.set()
            update.join(DEADLINE)
        page.wait_for("document.querySelector('h1').innerText === '1 serves step-2'")
        assert page.evaluate("window.stays && !document.querySelector('.card')")
        assert "live, " in page.text()


def test_given_the_token_when_the_rollback_is_confirmed_with_keyboard_and_mouse_then_it_is_done(
    page: Page, tmp_path: Path
) -> None:
    with shown(token=TOKEN, history=tmp_path / "history.jsonl") as fleet, looking_at(page):
        fleet.bring("v2")
        fleet.bring("v3", 3)
        page.open(f"{fleet.url}/")
        page.click("#to-rollback")
        page.wait_for("location.pathname === '/rollback' && document.readyState === 'complete'")
        page.evaluate("document.getElementById('token').focus()")
        page.type(TOKEN)
        page.click("#confirm")
        page.wait_for(
            "location.pathname === '/' && document.body.innerText.includes('serves the version before again')"
        )
        page.wait_for("document.querySelector('h1').innerText === 'All 2 serve v2'")
        assert {sink.version for sink in fleet.sinks} == {"v2"}
        page.click(".past tbody a")
        page.wait_for("location.pathname.startsWith('/updates/') && document.readyState === 'complete'")
        assert "rollback, staged" in page.text()


def test_given_names_that_are_html_then_they_are_text_and_run_nothing(page: Page, tmp_path: Path) -> None:
    engine = TorchEngine(model(1), "", HOSTILE)
    with shown(engine, version=HOSTILE, history=tmp_path / "history.jsonl") as fleet, looking_at(page):
        fleet.bring(f"{HOSTILE} 2")
        page.open(f"{fleet.url}/")
        page.wait_for("document.documentElement.dataset.refreshed >= 1")
        assert page.text().count(HOSTILE) >= 4
        assert page.evaluate("document.title") == "Fleet · ckpt-transport"
        assert page.evaluate("document.querySelectorAll('img, script').length") == 2
        page.click(".past tbody a")
        page.wait_for("location.pathname.startsWith('/updates/') && document.readyState === 'complete'")
        assert page.evaluate("document.title") == f"{HOSTILE} 2 · ckpt-transport"


def test_given_who_prefers_the_dark_then_the_page_is_and_words_can_be_read_in_both(page: Page) -> None:
    with shown() as fleet, looking_at(page):
        page.open(f"{fleet.url}/")
        papers = []
        for scheme in ("light", "dark"):
            page.scheme(scheme)
            papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert page.evaluate(LEAST_CONTRAST) >= 4.5
        assert len(set(papers)) == 2
        assert page.picture().startswith(b"\x89PNG")


def test_given_a_page_then_its_tables_and_pictures_have_names(page: Page, tmp_path: Path) -> None:
    with shown(history=tmp_path / "history.jsonl") as fleet, looking_at(page):
        fleet.bring("v2")
        page.open(f"{fleet.url}/")
        for _ in range(2):
            assert page.evaluate("document.querySelectorAll('table').length") >= 1
            assert page.evaluate(NAMELESS) == []
            page.open(f"{fleet.url}{page.evaluate(NEXT)}")


NEXT = "document.querySelector('.past tbody a')?.getAttribute('href') ?? '/'"
NAMELESS = """
[...document.querySelectorAll('table, thead th, tbody th, svg')].filter(each => ({
  TABLE: () => !each.caption?.innerText, TH: () => !each.scope,
  svg: () => each.getAttribute('aria-hidden') !== 'true' && !each.getAttribute('aria-label'),
})[each.tagName]()).map(each => each.outerHTML)
"""
LEAST_CONTRAST = """
(() => {
  const parts = color => color.match(/[\\d.]+/g).map(Number);
  const light = color => parts(color).slice(0, 3).map(part => part / 255)
    .map(part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [.2126, .7152, .0722][at], 0);
  const behind = each => {
    const color = getComputedStyle(each).backgroundColor;
    return parts(color)[3] === 0 ? behind(each.parentElement) : color;
  };
  return Math.min(...[...document.querySelectorAll('h1, h2, th, td, a, p, .mark, .detail, footer')].map(each => {
    const [low, high] = [light(getComputedStyle(each).color), light(behind(each))].sort((a, b) => a - b);
    return (high + .05) / (low + .05);
  }));
})()
"""
