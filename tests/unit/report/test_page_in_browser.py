"""``index.html`` in a headless Chromium: it loads nothing, says nothing on the console, sorts and tells numbers."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, sync_playwright

from counterflow.report.cli import main
from tests.helpers.finished_runs import run_maker

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PLACE_OF_A_POINT = """name => {
    const items = [...document.querySelectorAll('script[type="application/json"]')].map(s => JSON.parse(s.textContent));
    const view = Bokeh.index.get_by_id(items.find(item => item.target_id == name).root_id);
    const {x, mean} = view.model.renderers.findLast(r => r.name == "hover").data_source.data;
    const corner = view.canvas_view.el.getBoundingClientRect();
    return [corner.x + view.frame.x_scale.compute(x[1]), corner.y + view.frame.y_scale.compute(mean[1])];
}"""
"""Where the second point of a plot's last line is on the screen."""
MILLISECONDS = 60_000
"""Bound of every wait."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    make_run = run_maker(folder)
    for seed, accuracy in ((1, 0.9), (2, None), (3, 0.085)):
        rows = [{"event": "validation", "n": n, "seconds": 0.1, "accuracy": [0.5, 0.6 + n / 100]} for n in (0, 10, 20)]
        make_run(f"bll-{seed}", "bll", seed, accuracy, blocks=2, rows=rows, summary={"block_accuracy": [0.5, accuracy]})
    make_run("bp", "bp", 1, 0.95, blocks=2)
    main([str(folder / "runs"), "--out", str(folder / "out")])
    return folder / "out" / "index.html"


@pytest.fixture(scope="module")
def events() -> list[str]:
    """Requests of the page, and what it wrote on the console, but for notes."""
    return []


@pytest.fixture(scope="module", params=[(1400, 900), (390, 844)], ids=["wide", "phone"])
def page(request: pytest.FixtureRequest, page_file: Path, events: list[str]) -> Iterator[Page]:
    width, height = request.param
    events.clear()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(MILLISECONDS)
        page.on("request", lambda sent: None if sent.url.startswith("data:") else events.append(sent.url))
        page.on("console", lambda said: None if said.type in ("log", "info") else events.append(said.text))
        page.on("pageerror", lambda error: events.append(str(error)))
        page.goto(page_file.as_uri())
        page.locator("#run-table .slick-row").first.wait_for()
        yield page
        browser.close()


def column(page: Page, heading: Locator) -> list[str]:
    """Texts of the cells below a heading, from top to bottom."""
    left = heading.bounding_box()
    assert left is not None
    cells = [(cell.bounding_box(), cell.inner_text()) for cell in page.locator("#run-table .slick-cell").all()]
    below = [(box["y"], text) for box, text in cells if box and abs(box["x"] - left["x"]) < 9]
    return [text for _, text in sorted(below)]


def test_a_click_on_a_heading_sorts(page: Page) -> None:
    heading = page.locator("#run-table .slick-header-column", has_text="test accuracy [%]")
    heading.scroll_into_view_if_needed()
    assert column(page, heading) == ["95.00", "90.00", "", "8.50"]
    heading.click()
    page.locator("#run-table .slick-sort-indicator-asc").wait_for()
    assert column(page, heading) == ["8.50", "90.00", "95.00", ""]
    heading.click()
    page.locator("#run-table .slick-sort-indicator-desc").wait_for()
    assert [text for text in column(page, heading) if text] == ["95.00", "90.00", "8.50"]


@pytest.mark.parametrize(
    ("plot", "told"),
    [
        ("table1-cpu-curves-1", "BLL\nbatch: 10\nvalidation accuracy [%]: 70.00 ± 0.00 (3 seeds)"),
        (
            "table1-cpu-block-accuracy-1",
            "BLL\nblock (1 is next to the inputs): 2\ntest accuracy of the block alone [%]: "
            f"{(90 + 8.5) / 2:.2f} ± {(90 - 8.5) / 2**0.5:.2f} (2 seeds)",
        ),
    ],
)
def test_a_point_tells_its_numbers(page: Page, plot: str, told: str) -> None:
    page.locator(f"#{plot}").scroll_into_view_if_needed()
    x, y = page.evaluate(PLACE_OF_A_POINT, plot)
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y)
    tooltip = page.locator(".bk-tooltip-content")
    tooltip.wait_for()
    assert tooltip.inner_text() == told
    page.mouse.move(0, 0)
    tooltip.wait_for(state="hidden")


def test_nothing_is_wider_than_the_screen(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_nothing_was_loaded_and_nothing_went_wrong(page: Page, page_file: Path, events: list[str]) -> None:
    """The last test: what the others did is in ``events``, too."""
    assert events == [page_file.as_uri()]
