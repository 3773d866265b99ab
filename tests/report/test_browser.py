"""The page in a real browser: nothing fails, nothing is fetched, nothing overflows, and every control works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mmalign.report import write_report
from tests.report.synthetic_clips import make_clip_run
from tests.report.synthetic_run import HOSTILE, make_run

webdriver = pytest.importorskip("selenium.webdriver", reason="the package selenium is not installed")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="no Chromium with its driver (chromium, chromium-driver)"),
]
DESKTOP, PHONE = (1280, 900), (375, 780)
Open = Callable[[Path, tuple[int, int]], Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # Containers have no user namespaces and a small /dev/shm; smooth scrolling would move what is being clicked.
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--force-prefers-reduced-motion",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("good") / "run"
    return write_report(run, data_root=make_run(run, pairs=40))


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("hostile") / "run"
    return write_report(run, data_root=make_run(run, pairs=8, text=f"{HOSTILE} {'unbroken' * 60}"))


@pytest.fixture(scope="module")
def clip_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("clips") / "run"
    return write_report(run, data_root=make_clip_run(run))


@pytest.fixture
def opened(browser: Any) -> Open:
    def visit(path: Path, size: tuple[int, int] = DESKTOP) -> Any:
        browser.get("about:blank")
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # empties it
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
        )
        browser.get(path.as_uri())
        return browser

    return visit


def requests(browser: Any) -> list[str]:
    """Every address asked for since the page was opened, except those inside of the page itself."""
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    asked = (event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent")
    return [url for url in asked if not url.startswith("data:")]


def visible(browser: Any) -> list[Any]:
    return [found for found in browser.find_elements(By.CSS_SELECTOR, ".pair") if found.is_displayed()]


def count(browser: Any) -> str:
    return str(browser.find_element(By.ID, "count").text)


def slide(browser: Any, name: str, position: int) -> None:
    """Put a range control at a position, as a drag does."""
    browser.execute_script(
        "const c = document.getElementById(arguments[0]); c.value = arguments[1];"
        "c.dispatchEvent(new Event('input', {bubbles: true}));",
        name,
        str(position),
    )


def gaps(browser: Any) -> list[float | None]:
    return [json.loads(card.get_attribute("data-numbers")).get("gap") for card in visible(browser)]


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("which", ["page", "hostile_page", "clip_page"])
def test_nothing_fails_is_fetched_or_overflows(
    opened: Open, which: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(which)
    browser = opened(path, size)
    browser.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    for more in browser.find_elements(By.ID, "more"):
        while more.is_displayed():
            browser.execute_script("arguments[0].click()", more)
    assert browser.get_log("browser") == []
    assert requests(browser) == [path.as_uri()]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0]
    wide = browser.execute_script(
        "return [...document.querySelectorAll('body *:not(.frames *)')]"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 120))"
    )
    assert wide == []
    assert browser.execute_script("return window.harmed") is None
    broken = "return [...document.images].filter((i) => !i.complete || i.naturalWidth === 0).length"
    assert browser.execute_script(broken) == 0


def test_policy_stops_a_script_that_got_in(opened: Open, page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    bad = tmp_path / "bad.html"
    inserted = '<script>window.harmed = 1</script><img src="https://example.invalid/x.png" onerror="window.harmed = 2">'
    bad.write_text(text.replace("<main", f"{inserted}<main"), encoding="utf-8")
    browser = opened(bad, DESKTOP)
    assert browser.execute_script("return window.harmed") is None
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_pairs_come_in_portions(opened: Open, page: Path) -> None:
    browser = opened(page, DESKTOP)
    assert (len(visible(browser)), count(browser)) == (12, "40 pairs, the first 12 are shown")
    more = browser.find_element(By.ID, "more")
    more.send_keys(Keys.ENTER)
    assert len(visible(browser)) == 24
    focused = browser.switch_to.active_element
    assert focused.get_attribute("id") == visible(browser)[12].get_attribute("id")
    more.send_keys(Keys.ENTER)
    more.send_keys(Keys.ENTER)
    assert (len(visible(browser)), count(browser), more.is_displayed()) == (40, "40 pairs", False)


def test_sources_filter(opened: Open, page: Path) -> None:
    browser = opened(page, DESKTOP)
    browser.find_element(By.CSS_SELECTOR, "input[name=source][value=best_worst]").click()
    browser.find_element(By.CSS_SELECTOR, "input[name=source][value=tempted]").send_keys(Keys.SPACE)
    assert count(browser) == "13 of 40 pairs match, the first 12 are shown"
    assert {card.get_attribute("data-source") for card in visible(browser)} == {"damaged"}
    browser.find_element(By.CSS_SELECTOR, "input[name=source][value=damaged]").click()
    assert (count(browser), visible(browser)) == ("0 of 40 pairs match", [])


def test_media_filter_is_there_only_where_pairs_differ(opened: Open, page: Path, clip_page: Path) -> None:
    assert not opened(page, DESKTOP).find_elements(By.CSS_SELECTOR, "input[name=medium]")
    browser = opened(clip_page, DESKTOP)
    assert count(browser) == "21 pairs, the first 12 are shown"
    browser.find_element(By.CSS_SELECTOR, "input[name=medium][value=video]").click()
    assert count(browser) == "4 of 21 pairs match"
    browser.find_element(By.CSS_SELECTOR, "input[name=medium][value=image]").click()
    assert [card.get_attribute("data-source") for card in visible(browser)] == ["text"]


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_frames_stand_in_one_row_that_scrolls_by_keyboard_on_a_phone(
    opened: Open, clip_page: Path, size: tuple[int, int]
) -> None:
    browser = opened(clip_page, size)
    strip = browser.find_element(By.CSS_SELECTOR, "#pair-2 .frames")
    images = strip.find_elements(By.TAG_NAME, "img")
    assert len({image.location["y"] for image in images}) == 1
    assert min(image.size["width"] for image in images) >= 80
    scrolls = browser.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", strip)
    assert scrolls == (size == PHONE)
    strip.send_keys(Keys.ARROW_RIGHT)
    if scrolls:
        WebDriverWait(browser, 10).until(lambda it: it.execute_script("return arguments[0].scrollLeft", strip) > 0)


def test_the_painted_box_is_outlined_where_it_is(opened: Open, clip_page: Path) -> None:
    browser = opened(clip_page, DESKTOP)
    card = browser.find_element(By.CSS_SELECTOR, "article[data-source=box_mask]")
    image, outline = (card.find_element(By.CSS_SELECTOR, f".is-covered {tag}").rect for tag in ("img", "rect"))
    assert image["x"] <= outline["x"] + 1 <= outline["x"] + outline["width"] <= image["x"] + image["width"] + 1
    assert 0.2 < outline["width"] * outline["height"] / (image["width"] * image["height"]) < 0.6


def test_search_finds_all_words_in_any_case(opened: Open, page: Path) -> None:
    browser = opened(page, DESKTOP)
    search = browser.find_element(By.ID, "search")
    search.send_keys("there SCENE-003.png#0.3")
    assert count(browser) == "1 of 40 pairs match"
    (card,) = visible(browser)
    assert "scene-003.png#0.3" in card.text
    search.send_keys(" zebra")
    assert (count(browser), visible(browser)) == ("0 of 40 pairs match", [])
    search.clear()
    search.send_keys("boat")
    assert all("boat" in card.text for card in visible(browser))
    assert 0 < len(visible(browser)) < 40


def test_range_and_sort_by_gap(opened: Open, page: Path) -> None:
    browser = opened(page, DESKTOP)
    slide(browser, "low", 100)
    low = float(browser.find_element(By.ID, "low-shown").text)
    found = gaps(browser)
    assert 0 < len(found) < 40
    assert all(gap is not None and gap >= low - 0.01 for gap in found)
    assert "of 40 pairs match" in count(browser)
    Select(browser.find_element(By.ID, "sort")).select_by_value("down")
    down = [gap for gap in gaps(browser) if gap is not None]
    assert down == sorted(down, reverse=True)
    slide(browser, "high", 20)
    assert browser.find_element(By.ID, "low").get_attribute("value") == "20"
    Select(browser.find_element(By.ID, "sort")).select_by_value("up")
    up = [gap for gap in gaps(browser) if gap is not None]
    assert up == sorted(up)


def test_pairs_without_the_number_come_last(opened: Open, page: Path) -> None:
    browser = opened(page, DESKTOP)
    Select(browser.find_element(By.ID, "sort")).select_by_value("up")
    for _ in range(3):
        browser.find_element(By.ID, "more").send_keys(Keys.ENTER)
    found = gaps(browser)
    known = [gap for gap in found if gap is not None]
    assert found == [*sorted(known), *[None] * 13]


def test_another_number_and_reset(opened: Open, page: Path) -> None:
    browser = opened(page, DESKTOP)
    number = Select(browser.find_element(By.ID, "number"))
    names = [option.text for option in number.options]
    assert names[:3] == ["gap", "consistency, chosen (score)", "consistency, rejected (score)"]
    number.select_by_visible_text("consistency, rejected (score)")
    slide(browser, "high", 50)
    browser.find_element(By.ID, "search").send_keys("boat")
    assert count(browser) != "40 pairs, the first 12 are shown"
    browser.find_element(By.CSS_SELECTOR, "button[type=reset]").click()
    # The form's fields are reset after the event, so the page counts anew a moment later.
    WebDriverWait(browser, 10).until(lambda it: count(it) == "40 pairs, the first 12 are shown")
    assert browser.find_element(By.ID, "high").get_attribute("value") == "200"


def test_keyboard_reaches_every_control_and_each_has_a_name(opened: Open, page: Path) -> None:
    browser = opened(page, PHONE)
    reached = []
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element)
        if reached[-1].tag_name == "summary" and len(reached) > 20:
            break
    ids = {element.get_attribute("id") for element in reached}
    assert {"search", "number", "low", "high", "sort"} <= ids
    assert all(element.accessible_name for element in reached)


def test_differences_are_marked_by_more_than_colour(opened: Open, page: Path) -> None:
    browser = opened(page, DESKTOP)
    for tag, line in (("ins", "underline"), ("del", "line-through"), ("mark", "underline")):
        found = browser.find_element(By.CSS_SELECTOR, f"article {tag}")
        assert line in found.value_of_css_property("text-decoration-line")


def test_sides_stand_side_by_side_and_stack_on_a_phone(opened: Open, page: Path) -> None:
    def tops(size: tuple[int, int]) -> list[int]:
        browser = opened(page, size)
        return [side.location["y"] for side in browser.find_elements(By.CSS_SELECTOR, "#pair-1 .side")]

    assert len(set(tops(DESKTOP))) == 1
    assert len(set(tops(PHONE))) == 2


def test_small_pictures_are_enlarged_with_hard_edges(opened: Open, page: Path) -> None:
    browser = opened(page, DESKTOP)
    image = browser.find_element(By.CSS_SELECTOR, "#pair-1 img")
    assert image.value_of_css_property("image-rendering") == "pixelated"
    assert image.size["width"] > 2 * 64


def test_the_page_reads_without_script(opened: Open, page: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.html"
    start, _, rest = page.read_text(encoding="utf-8").rpartition("<script>")
    plain.write_text(start + rest.partition("</script>")[2], encoding="utf-8")
    browser = opened(plain, DESKTOP)
    assert len(visible(browser)) == 40
    assert not browser.find_element(By.ID, "filters").is_displayed()
