"""The pages in a headless Chromium: no error, nothing from outside, filters and keyboard work, and they fit
a phone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from browser import CHROMIUM, Page, chromium
from maskreid_dist.report import write_report
from maskreid_dist.report.compare_page import ChangedQuery, ComparePage, verdict, write_compare_page
from maskreid_dist.report.html import CameraPairRow
from test_report import FIGURES, query, report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium in the PATH")
SHOWN = "[...document.querySelectorAll('.query')].filter(q => q.offsetParent).map(q => q.id)"
FOCUS = "document.activeElement.getAttribute('aria-label')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, tmp_path: Path) -> Iterator[Page]:
    """The report of three queries; none may have asked for anything, or said an error."""
    path = tmp_path / "report.html"
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 10, "loss": 4.5}\n{"step": 20, "loss": 4.1}\n')
    write_report(path, report(metrics, [query("hardest", later=37), query("median"), query("easiest")]))
    browser.open(path)
    browser.value("document.querySelectorAll('.query').forEach((q, n) => q.id = n)")
    yield browser
    assert browser.problems == []
    assert [url for url in browser.asked if not url.startswith(("file:", "data:"))] == []


def choose(page: Page, name: str, value: str) -> None:
    page.value(
        f"(() => {{ const field = document.querySelector('.filters').elements['{name}'];"
        f"field.value = '{value}'; field.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
    )


def test_filters(page: Page) -> None:
    assert page.value(SHOWN) == ["0", "1", "2"]
    options = "[...document.querySelector('.filters').elements.rank.options].map(o => o.textContent)"
    assert page.value(options) == ["all", "rank 1 (2)", "rank 11 to 50 (1)"]
    choose(page, "rank", "rank 1")
    assert page.value(SHOWN) == ["1", "2"]
    choose(page, "group", "easiest")
    assert page.value(SHOWN) == ["2"]
    assert page.value("document.querySelector('output').textContent") == "1 of 3 queries"
    page.value("document.querySelector('.filters').reset()")
    page.value("new Promise(done => setTimeout(done))")
    assert page.value(SHOWN) == ["0", "1", "2"]
    choose(page, "text", "KEY_LATE person")
    assert page.value(SHOWN) == ["0"]
    assert page.value("getComputedStyle(document.querySelector('.key')).display") == "none"
    page.value("document.querySelector('.filters').elements.keys.click()")
    assert page.value("getComputedStyle(document.querySelector('.key')).display") == "block"


def test_keyboard(page: Page) -> None:
    page.press("/")
    assert page.value("document.activeElement.name") == "text"
    page.value("document.querySelector('.shot').focus()")
    steps = [
        ("ArrowRight", "picture"),
        ("ArrowRight", "key_0"),
        ("ArrowDown", "key_0"),
        ("End", "key_3"),
        ("ArrowUp", "key_3"),
        ("End", "key_late"),
        ("ArrowRight", "key_late"),
        ("Home", "p00000007_00001"),
    ]
    for key, expected in steps:
        page.press(key)
        assert page.value(FOCUS) == expected, key
    assert page.value("document.activeElement.closest('.query').id") == "0"
    # One stop of Tab a row.
    assert page.value("document.querySelectorAll('.row .shot[tabindex=\"0\"]').length") == 3
    choose(page, "group", "easiest")
    page.value("document.querySelector('[id=\"2\"] .shot').focus()")
    page.press("ArrowUp")  # hidden rows are passed over; there is none before
    assert page.value("document.activeElement.closest('.query').id") == "2"


def test_a_picture_is_enlarged_and_left(page: Page) -> None:
    page.value("document.querySelectorAll('.shot')[2].focus()")
    page.press("Enter")
    assert page.value("document.querySelector('dialog').open")
    assert "key_0" in page.value("document.querySelector('dialog p').textContent")
    page.press("ArrowRight")
    assert "key_1" in page.value("document.querySelector('dialog p').textContent")
    page.press("Escape")
    page.value("new Promise(done => setTimeout(done))")
    assert not page.value("document.querySelector('dialog').open")
    assert page.value(FOCUS) == "key_1"


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_light_and_dark(page: Page, tmp_path: Path, dark: bool) -> None:
    page.open(tmp_path / "report.html", width=390, height=800, dark=dark)
    assert page.value("document.documentElement.scrollWidth") == 390
    assert page.value("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    light = page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light is not dark
    small = "[...document.querySelectorAll('select, .filters input[type=search], .shot')]"
    assert page.value(f"{small}.filter(e => e.getBoundingClientRect().height < 30).length") == 0


@pytest.mark.parametrize("width", [390, 1400])
def test_tables_scroll_in_their_own_boxes(browser: Page, tmp_path: Path, width: int) -> None:
    """Longer and wider than a phone: every cell can be brought into sight, and the names stay there."""
    path = tmp_path / "report.html"
    whole = report(tmp_path / "none", [])
    table = [("a method of a name " + n * "é", FIGURES) for n in (1, 400)]
    pairs = [CameraPairRow("1", str(n), 5, 12.5, None) for n in range(2, 300)]
    write_report(path, replace(whole, table=table, camera_pairs=pairs))
    browser.open(path, width=width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    boxes = "[...document.querySelectorAll('.scroll')]"
    assert browser.value(f"{boxes}.map(b => b.clientWidth < b.scrollWidth)")[0] is (width == 390)
    assert browser.value(f"{boxes}.map(b => b.clientHeight < b.scrollHeight)")[-1] is True
    last = browser.value(
        f"{boxes}.map(b => {{ b.scrollTo(9999, 99999); const box = b.getBoundingClientRect();"
        "const cells = [...b.querySelectorAll('td')], end = cells.at(-1).getBoundingClientRect();"
        "return [end.right <= box.right + 1, end.bottom <= box.bottom + 1, box.right <= innerWidth]; })"
    )
    assert last == [[True, True, True]] * 3
    names = f"{boxes}[0].querySelector('td').getBoundingClientRect().left >= 0"
    assert browser.value(names) and browser.value(f"{boxes}.map(b => b.tabIndex)") == [0, 0, 0]


def test_a_comparison_filters_moves_and_fits_a_phone(browser: Page, tmp_path: Path) -> None:
    both = [ChangedQuery(query(kind, later=37), query(kind)) for kind in ("gained", "lost")]
    path = tmp_path / "both.html"
    figures = [("demo, step 8", FIGURES), ("demo, step 8", FIGURES)]
    differences = {"mAP": (1.5, -0.5, 3.5)}
    page = ComparePage(
        ("runs/a", "runs/b"), figures, differences, [[0.5, 0.6], [0.6, 0.7]], [(0.1, 0.4), (0.5, 0.5)],
        {"optimizer.lr": ("0.1", "<0.2>"), "commit": ("a" * 40, "b" * 40)}, both,
    )  # fmt: skip
    write_compare_page(path, page)
    for width in (1400, 390):
        browser.open(path, width=width)
        assert browser.value("document.documentElement.scrollWidth") <= width
        whole = "(b => b.scrollWidth <= b.clientWidth)(document.querySelector('.settings').parentElement)"
        assert browser.value(whole)  # both columns beside each other, on a phone too
    table = browser.value("document.querySelector('.differences').textContent")
    assert "+1.50" in table and "-0.50 to +3.50" in table and "may be chance" in table
    assert "<0.2>" in browser.value("document.querySelector('.settings').textContent")
    choose(browser, "group", "lost")
    assert browser.value("document.querySelector('output').textContent") == "1 of 2 queries"
    # From A's list to B's of the same query.
    browser.value("document.querySelectorAll('.query')[1].querySelectorAll('.shot')[2].focus()")
    browser.press("ArrowDown")
    expected = "[...document.querySelectorAll('.query')[1].querySelectorAll('.row')].indexOf"
    assert browser.value(f"{expected}(document.activeElement.closest('.row'))") == 1
    assert browser.value(FOCUS) == "key_0"
    assert browser.problems == []


def test_verdicts() -> None:
    assert [verdict(0.1, 2), verdict(-2, -0.1), verdict(-1, 1)] == [
        "B is better", "A is better", "may be chance"
    ]  # fmt: skip
