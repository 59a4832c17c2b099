"""The demo page and the API reference in a real browser, against a whole private stack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.stack import Stack

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
SLOW_MS = 20_000
HOSTILE = '<img src="/x" onerror="document.title=1">&amp;'

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH: install Debian's `chromium`"
)


@dataclass
class Visit:
    """A page of its own profile, with every request and console error it made."""

    page: Page
    url: str
    origins: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def open(self, path: str = "/") -> Page:
        self.page.goto(self.url + path)
        return self.page

    def open_wall(self) -> Page:
        self.open()
        return self.settle()

    def settle(self) -> Page:
        """Wait until the wall shows an answer and nothing is on its way."""
        expect(self.page.locator("#wall")).to_have_attribute("aria-busy", "false")
        expect(self.page.locator(".card .title").first).to_be_visible()
        return self.page

    def film_ids(self) -> list[str]:
        return self.page.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.itemId)")

    def act(self, selector: str) -> None:
        """Use a control that leads to another slate, and wait for that slate."""
        with self.page.expect_response("**/v1/recommend"):
            self.page.locator(selector).first.click()
        self.settle()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=SLOW_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, stack: Stack) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    visit = Visit(page=context.new_page(), url=stack.url)
    context.on("request", lambda request: visit.origins.add("{0.scheme}://{0.netloc}".format(urlsplit(request.url))))
    context.on("console", lambda message: visit.errors.append(message.text) if message.type == "error" else None)
    context.on("weberror", lambda error: visit.errors.append(str(error.error)))
    yield visit
    context.close()


def test_the_wall_shows_at_least_ten_films_with_title_and_propensity(visit: Visit) -> None:
    page = visit.open_wall()
    titles = page.locator(".card .title").all_text_contents()
    propensities = [float(text) for text in page.locator(".card .propensity").all_text_contents()]
    assert len(titles) == len(propensities) >= 10
    assert all(title and title not in visit.film_ids() for title in titles)
    assert all(0.0 < propensity <= 1.0 for propensity in propensities)


def test_a_click_changes_the_slate_and_takes_the_film_off_the_wall(visit: Visit) -> None:
    page = visit.open_wall()
    before, title = visit.film_ids(), page.locator(".card .title").first.inner_text()
    visit.act(".card .film")
    assert before[0] not in visit.film_ids()
    assert visit.film_ids() != before
    expect(page.locator("#news")).to_contain_text(f"You chose {title}.")
    expect(page.locator("#recent li").first).to_contain_text(title)


def test_the_model_version_rises_within_seconds_of_a_click(visit: Visit) -> None:
    page = visit.open_wall()
    before = int(page.locator("#model-version").inner_text())
    visit.act(".card .film")
    page.wait_for_function(
        "before => Number(document.getElementById('model-version').textContent) > before", arg=before, timeout=SLOW_MS
    )


@pytest.mark.parametrize("surface", ["Home", "Playlist"])
def test_why_shows_parts_that_add_up_to_the_propensity_of_the_card(visit: Visit, surface: str) -> None:
    page = visit.open_wall()
    visit.act(f"#surfaces button:has-text('{surface}')")
    for slot in range(3):
        shown = page.locator(".card .propensity").nth(slot).inner_text()
        page.locator(".card .why").nth(slot).click()
        parts = {part: float(page.locator(f"[data-part={part}]").inner_text()) for part in ("greedy", "shortlist")}
        parts["uniform"] = float(page.locator("[data-part=uniform]").inner_text())
        propensity = float(page.locator("[data-part=propensity]").inner_text())
        # Each of the three parts is rounded to six digits.
        assert sum(parts.values()) == pytest.approx(propensity, abs=2e-6)
        assert min(parts.values()) >= 0.0
        assert float(shown) == pytest.approx(propensity, abs=0.5001 * 10 ** -len(shown.split(".")[1]))
        page.keyboard.press("Escape")


def test_a_disliked_film_does_not_come_back(visit: Visit) -> None:
    visit.open_wall()
    disliked = visit.film_ids()[0]
    visit.act(".act.dislike")
    assert disliked not in visit.film_ids()
    visit.page.reload()
    visit.settle()
    assert disliked not in visit.film_ids()


def test_more_like_this_opens_the_similar_surface(visit: Visit) -> None:
    page = visit.open_wall()
    title = page.locator(".card .title").first.inner_text()
    visit.act(".act.similar")
    expect(page.locator("#wall-title")).to_have_text(f"More like {title}")
    assert set(page.locator(".card .source").all_text_contents()) == {"similar"}


def test_the_keyboard_alone_chooses_films_and_keeps_its_place(visit: Visit) -> None:
    page = visit.open_wall()
    page.locator(".card .film").nth(2).focus()
    for _ in range(2):
        chosen = visit.film_ids()[2]
        with page.expect_response("**/v1/recommend"):
            page.keyboard.press("Enter")
        visit.settle()
        assert chosen not in visit.film_ids()
        assert page.evaluate("document.activeElement.closest('li').dataset.slot") == "2"


def test_a_problem_shows_its_detail_and_can_be_tried_again(visit: Visit) -> None:
    page = visit.open_wall()

    def misname(route: Route) -> None:
        body = {**route.request.post_data_json, "surface": "nowhere"}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/recommend", misname)
    page.locator("#refresh").click()
    expect(page.locator("#problem")).to_contain_text("nowhere")
    page.unroute("**/v1/recommend")
    visit.act("#problem button")
    expect(page.locator("#problem")).to_be_hidden()


def test_markup_in_a_title_is_shown_as_text(visit: Visit) -> None:
    def rename(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=[{**item, "title": HOSTILE} for item in answer.json()])

    visit.page.route("**/v1/items?*", rename)
    page = visit.open_wall()
    assert set(page.locator(".card .title").all_text_contents()) == {HOSTILE}
    visit.act(".card .film")
    page.locator(".card .why").first.click()
    expect(page.locator("#why-title")).to_have_text(HOSTILE)
    assert page.locator("img").count() == 0
    assert page.title() != "1"


def test_the_page_fits_a_screen_of_360_pixels(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 360, "height": 740})
    page = visit.open_wall()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    visit.open("/docs").locator(".operation").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_reference_lists_recommend_and_sends_a_request(visit: Visit) -> None:
    page = visit.open("/docs")
    expect(page.locator("#contents")).to_contain_text("/v1/recommend")
    recommend = page.locator("#post_v1_recommend")
    expect(recommend).to_contain_text("surface")
    recommend.get_by_role("button", name="Send").click()
    expect(recommend.locator(".answer")).to_contain_text("200 in")
    expect(recommend.locator("pre")).to_contain_text("propensity")
    assert visit.errors == []


def test_a_whole_visit_logs_no_error_and_asks_no_other_origin(visit: Visit) -> None:
    page = visit.open_wall()
    visit.act(".card .film")
    visit.act(".act.skip")
    visit.act("#surfaces button:has-text('Playlist')")
    page.locator(".card .why").first.click()
    page.locator("[data-part=propensity]").wait_for()
    page.keyboard.press("Escape")
    visit.act(".act.similar")
    visit.act("#new-visitor")
    with page.expect_response("**/v1/recommend"):
        page.locator("#visitor").select_option("ml-1")
    visit.settle()
    visit.open("/docs").locator(".operation").first.wait_for()
    assert visit.errors == []
    assert visit.origins - {"data://"} == {visit.url}
