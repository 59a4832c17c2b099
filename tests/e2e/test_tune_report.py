"""The tuning report in a real browser: it opens without a network, says no error, and its plots are drawn."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, sync_playwright

from bandit.exploration import Epsilon, Softmax
from simulators.tune.candidates import Candidate, vw_candidate
from simulators.tune.curves import Plan
from simulators.tune.judge import Limits
from simulators.tune.report import write_report
from simulators.tune.sample import Sample, make_sample
from simulators.tune.study import Study, study
from simulators.worlds.named import TRAINED_SETTINGS, churning_world
from tests.e2e.test_demo_page import ARGUMENTS, CHROMIUM

N_PLOTS = 7
CANDIDATES = [
    *(Candidate(Epsilon(rate=rate)) for rate in (0.1, 0.0, 0.2)),
    Candidate(Softmax()),
    # The log says nothing of these.
    Candidate(Epsilon(rate=0.1), discovery_share=0.2),
    vw_candidate("--cb_explore_adf --epsilon 0.1", shortlist=5),
]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH: install Debian's `chromium`"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of a small log and few short runs."""
    world = churning_world()
    sample = make_sample(
        Sample(world, CANDIDATES[0], n_learned=200, n_logged=500, settings=TRAINED_SETTINGS),
        tmp_path_factory.mktemp("tune"),
    )
    with ThreadPoolExecutor(1) as pool:
        return study(
            CANDIDATES,
            surface="home",
            sample=sample,
            plan=Plan(world, 80, (1, 2), settings=TRAINED_SETTINGS),
            limits=Limits(),
            pool=pool,
            say=lambda title: lambda done, total: None,
        )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=CHROMIUM, args=ARGUMENTS, offline=True
        )
        yield context
        context.close()


def test_the_report_opens_without_a_network_and_every_plot_is_drawn(
    found: Study, browser: BrowserContext, tmp_path: Path
) -> None:
    path = tmp_path / "tune.html"
    write_report(path, found, command="hone config set surfaces.home.exploration.rate 0.3")
    page, errors, requested = browser.new_page(), [], []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function(f"document.querySelectorAll('.js-plotly-plot .main-svg').length >= {N_PLOTS}")
    assert errors == []
    assert [url for url in requested if not url.startswith(("file:", "data:"))] == []
    drawn = page.evaluate(
        """[...document.querySelectorAll('.js-plotly-plot')].map(plot =>
             plot.querySelectorAll('.scatterlayer .trace, .barlayer .trace').length)"""
    )
    assert len(drawn) == N_PLOTS
    assert min(drawn) > 0
    assert page.evaluate("document.body.innerText.trim().split('\\n')[0]") == found.verdict.sentence
    titles = page.locator("h2").all_inner_texts()
    assert titles.index("Support and weights") < titles.index("Value on the log")
    # Nothing sticks out of the page but tables in boxes of their own that scroll.
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_the_check_finds_a_plot_that_is_not_drawn_and_an_error(browser: BrowserContext, tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    path.write_text("<p>Better</p><div class=js-plotly-plot></div><script>console.error('no')</script>")
    page, errors = browser.new_page(), []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(path.as_uri())
    assert page.locator(".js-plotly-plot .main-svg").count() == 0
    assert errors == ["no"]


def test_figures_hold_what_the_report_shows_and_nothing_that_json_lacks(found: Study) -> None:
    figures = found.figures()
    assert figures["verdict"]["sentence"] == found.verdict.sentence
    assert list(figures["candidates"]) == [one.name for one in CANDIDATES]
    assert figures["log"]["linearity"]["residual"] <= 1e-9
    softmax = figures["candidates"]["softmax"]
    assert softmax["log"]["support"]["refusal"]
    assert all(line["value"] is None for line in softmax["log"]["panel"].values())
    assert figures["candidates"]["epsilon 0.1"]["log"]["support"]["max_weight"] == 1.0


def test_estimates_of_the_simulated_log_are_near_the_true_values(found: Study) -> None:
    errors = [found.relative_errors(one) for one in CANDIDATES[:3]]
    # A short log carries few values of whole slates, and what one slot would earn of all three.
    assert max(of_one["one_slot"] for of_one in errors) < 0.35
    assert max(of_one.get("sn_rips", 0.0) for of_one in errors) < 0.35
    assert all(value.value is None for value in found.sample.values[CANDIDATES[3]].panel)
