"""The page in a real browser: what a person sees of an incident and of layers, by pointer, by keyboard, in the dark.

SHADOWLAB_REPORT_PICTURE=docs/pictures/report.png makes the README's picture of it.
"""

import math
import os
import re
import shutil
from pathlib import Path

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from typer.testing import CliRunner

from cli.main import app
from shadowlab.views.page.page import write_report
from tests.browser import Browser, requires_chromium
from tests.runs import train_seed_fp16
from tests.views.page.run_folders import add_pictures, layers, make_run, stage, step

ROOT = Path(__file__).parents[3]
PICTURE = os.environ.get("SHADOWLAB_REPORT_PICTURE")

pytestmark = requires_chromium

NAMES = [f"{block}.{kind}" for block in ("down_blocks.0", "mid_block", "up_blocks.0") for kind in ("conv1", "norm")]

# Text on what it stands on, for every element that holds text of its own: WCAG 2.2, 1.4.3.
CONTRAST = """
const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return { c: [r, g, b], a }; };
const light = ({ c }) => c.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const found = parse(getComputedStyle(one).backgroundColor);
    if (found.a === 1) return found;
  }
  return { c: [255, 255, 255] };
};
return [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility()
    && [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())).map((one) => {
  const style = getComputedStyle(one), ink = parse(one instanceof SVGElement ? style.fill : style.color);
  const [low, high] = [light(ink), light(ground(one))].sort((a, b) => a - b);
  const name = `${one.tagName}.${one.getAttribute("class") || ""}`;
  return [(high + 0.05) / (low + 0.05), name, one.textContent.trim().slice(0, 40)];
}).sort((a, b) => a[0] - b[0]);
"""


@pytest.fixture(scope="module")
def incident(seed_fp16: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the README's first command. Made where the paths are short, if a picture is wanted."""
    folder = ROOT if PICTURE else seed_fp16[1]
    before = set(ROOT.glob("runs/*"))
    if PICTURE:
        train_seed_fp16(folder)
    run = max(folder.glob("runs/seed-fp16-train-*/**/incidents/step-*")).parents[1]
    page = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        reported = CliRunner().invoke(app, ["report", str(run.relative_to(folder)), "--out", str(page)])
    assert reported.exit_code == 0, reported.output
    if PICTURE:
        for made in set(ROOT.glob("runs/*")) - before:
            shutil.rmtree(made)
    return page


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a longer run, with a NaN in one layer at step 30."""
    records = []
    for number in range(1, 41):
        own = layers(*NAMES, norm=2.0 ** (number / 10), headroom=12 - number / 8)
        if number == 30:
            own["mid_block.norm"]["activation"]["norm"] = math.nan
        losses = {"0.00-0.25": 1 / number, "0.25-0.50": 2 / number}
        records.append(step(number, loss=3 / number, loss_by_t=losses, data_wait_seconds=0.01, layers=own))
    result = stage(
        steps=40, r2=0.5, rmse=0.1, black_rmse=0.2, checks=[{"name": "a" * 60, "passed": True, "seen": "b" * 90}]
    )
    run = make_run(tmp_path_factory.mktemp("runs") / "trained", records, stages={"train": result})
    add_pictures(run, 3)
    return write_report(run).file


def test_the_incident_is_on_one_page(browser: Browser, incident: Path) -> None:
    """Operator chain, operands, source line and fix are visible without a click; nothing is asked of a network."""
    browser.open(incident)
    assert "inf was born in addcdiv, phase optimizer of step 1" in browser.text()
    chain = [item.text.split("\n") for item in browser.find_all(".chain li")]
    signless = [[chain[0][0].removeprefix("-"), *chain[0][1:]], *chain[1:]]  # a processor's rounding decides the sign
    assert signless == [["inf born in", "addcdiv_"], ["reached", "parameter conv_in.weight"]]
    operands = [" ".join(row.text.split()) for row in browser.find_all(".operands tbody tr")]
    assert len(operands) == 4 and "denominator denom 0 zero" in operands
    assert "conv_in.weight.exp_avg_sq is" in browser.find(".zero").text
    assert "--precision bf16" in browser.find(".fix .commands code").text
    marked = browser.find(".source .marked")
    number, text = marked.text.split(maxsplit=1)
    source = (ROOT / "shadowlab" / "training" / "step.py").read_text().splitlines()
    assert source[int(number) - 1].strip() == text and text.startswith("optimizer.step()")
    assert f"step.py:{number}" in browser.find(".source figcaption").text
    assert len(browser.find_all(".source .line")) == 13
    assert "keep float32 master weights" in browser.find(".fix").text
    assert browser.find(".fix a").get_attribute("href") == "https://github.com/pytorch/pytorch/issues/8860"
    for part in (".chain", ".operands", ".source .marked", ".fix"):
        assert browser.find(part).is_displayed()
    assert any(item.text.startswith("shadowlab why ") for item in browser.find_all(".incident .commands code"))
    asked = browser.requests()
    assert asked[0] == incident.resolve().as_uri()
    assert all(address.startswith("data:") for address in asked[1:])
    assert browser.console() == []


def test_the_policy_lets_nothing_out(browser: Browser, trained: Path) -> None:
    """What a hostile text could try, were it ever to become an element."""
    browser.open(trained)
    browser.run(
        """const image = new Image(); image.src = "https://example.com/a.png"; document.body.append(image);
        const script = document.createElement("script"); script.textContent = "window.ran = true";
        document.body.append(script);"""
    )
    assert browser.run("return window.ran") is None
    assert len([message for message in browser.errors() if "Content Security Policy" in message]) == 2


def test_a_cell_says_layer_step_and_value(browser: Browser, trained: Path) -> None:
    browser.open(trained)
    heat = browser.find("#heat-map")
    browser.run("arguments[0].scrollIntoView({block: 'center'})", heat)
    width, height = heat.size["width"], heat.size["height"]

    def point(row: int, column: int) -> str:
        x = (column + 0.5) / 40 * width - width / 2
        y = (row + 0.5) / len(NAMES) * height - height / 2
        ActionChains(browser.driver).move_to_element_with_offset(heat, round(x), round(y)).perform()
        return browser.find("#heat-value").text

    assert point(0, 9) == "down_blocks.0.conv1, step 10: activation norm 2"
    assert browser.find("#heat-tip").text == "down_blocks.0.conv1\nstep 10: 2"
    assert point(3, 29) == "mid_block.norm, step 30: activation norm NaN"
    assert pixel(browser, 3, 29) == [255, 45, 149, 255]
    assert pixel(browser, 0, 0) == [68, 1, 84, 255] and pixel(browser, 5, 39) == [253, 231, 37, 255]

    browser.find_all('input[name="statistic"]')[2].click()
    assert point(5, 39) == "up_blocks.0.norm, step 40: headroom of activations 2 bits"
    assert pixel(browser, 5, 39) == [253, 231, 37, 255]  # the least headroom, as bright as the largest norm
    assert browser.console() == []


def pixel(browser: Browser, row: int, column: int) -> list[int]:
    """Red, green, blue, opacity."""
    return browser.run(
        """const map = document.getElementById("heat-map"), copy = document.createElement("canvas");
        [copy.width, copy.height] = [map.width, map.height];
        const context = copy.getContext("2d", { willReadFrequently: true });
        context.drawImage(map, 0, 0);
        const [x, y] = [arguments[0] * map.width, arguments[1] * map.height];
        return [...context.getImageData(x, y, 1, 1).data];""",
        (column + 0.5) / 40,
        (row + 0.7) / len(NAMES),
    )


def test_everything_can_be_reached_and_read_by_keyboard(browser: Browser, trained: Path) -> None:
    browser.open(trained)
    reached: list[str] = []
    for _ in range(60):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        at = browser.run(
            """const a = document.activeElement;
            if (a === document.body) return "end";
            const style = getComputedStyle(a.type === "radio" ? a.parentElement : a);
            const name = a.id || a.dataset.key || a.name || a.getAttribute("href") || a.tagName;
            return `${name} ${style.outlineStyle}`;"""
        )
        if at == "end":
            break
        reached.append(at)
    assert all(at.endswith(" solid") for at in reached), reached  # focus is seen
    order = [at.split()[0] for at in reached]
    assert order[0] == "#main"
    for early, late in (
        ("#stages", "loss"),
        ("loss", "learning-rate"),
        ("learning-rate", "statistic"),
        ("statistic", "heat-map"),
    ):
        assert order.index(early) < order.index(late), order

    plot = browser.find('.plot[data-key="loss"]')
    plot.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    assert plot.find_element("tag name", "output").text == "step 2: training 1.5"
    heat = browser.find("#heat-map")
    heat.send_keys(Keys.END, Keys.PAGE_DOWN, Keys.ARROW_DOWN, Keys.ARROW_LEFT)
    assert browser.find("#heat-value").text == "mid_block.norm, step 39: activation norm 59.7"
    assert browser.find("#heat-cursor").is_displayed()
    browser.find('input[name="statistic"]').send_keys(Keys.ARROW_RIGHT)
    assert browser.find("#heat-map").get_attribute("aria-label").startswith("Gradient norm of 6 layers")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser: Browser, incident: Path, trained: Path, scheme: str) -> None:
    browser.prefer(color_scheme=scheme)
    try:
        grounds = set()
        for page in (incident, trained):
            browser.open(page)
            browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            poorest = browser.run(CONTRAST)[0]
            assert poorest[0] >= 4.5, poorest
            grounds.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
        [ground] = grounds
        brightness = sum(map(int, re.findall(r"\d+", ground)[:3]))
        assert brightness < 120 if scheme == "dark" else brightness > 700
        assert browser.console() == []
    finally:
        browser.prefer()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("has_all_open", [False, True])
def test_a_phone_does_not_scroll_sideways(
    browser: Browser, incident: Path, trained: Path, scheme: str, has_all_open: bool
) -> None:
    """Neither the page nor a table in it: a row is a card, each cell under the heading of its column."""
    browser.resize(390, 844)
    browser.prefer(color_scheme=scheme)
    try:
        for page in (incident, trained):
            browser.open(page)
            if has_all_open:
                browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
            assert browser.run("return document.documentElement.scrollWidth") <= 390
            tables = "[...document.querySelectorAll('table')].filter((one) => one.checkVisibility())"
            assert browser.run(f"return {tables}.map((one) => one.scrollWidth).filter((width) => width > 366)") == []
        cells = browser.run(
            """const all = [...document.querySelectorAll(".scores td[data-label], .layers td")];
            return all.filter((one) => one.textContent).map((one) => getComputedStyle(one, "::before").content)"""
        )
        assert cells and all(len(label) > 2 for label in cells), cells
        browser.run(
            """document.querySelectorAll(".scores td[data-label]").forEach((one) => {
                one.innerHTML = 'value <span class="note">and a note on it</span>'; });"""
        )
        lefts = browser.run(
            """return [...document.querySelectorAll(".scores td[data-label]")].map((one) =>
                one.firstElementChild.getBoundingClientRect().left - one.getBoundingClientRect().left)"""
        )
        assert lefts and all(left >= 116 for left in lefts), lefts  # under the value, not under the heading
        assert browser.console() == []
    finally:
        browser.prefer()
        browser.resize(1200, 900)


@pytest.mark.parametrize("size", [(1200, 900), (390, 844)])
def test_a_picture_opens_by_click_and_key_and_closes(browser: Browser, trained: Path, size: tuple[int, int]) -> None:
    browser.resize(*size)
    try:
        browser.open(trained)
        figure, opener = browser.find("#picture-2"), browser.find("#picture-2 .open")
        before = figure.rect["width"]

        def is_open() -> bool:
            at = browser.run("const r = arguments[0].getBoundingClientRect(); return [r.x, r.y, r.width]", figure)
            return at == [0, 0, size[0]]

        browser.run("arguments[0].scrollIntoView({block: 'center'})", opener)
        opener.click()
        assert is_open() and browser.find("#picture-2 img").rect["width"] > before
        assert browser.run("return document.elementFromPoint(innerWidth / 2, innerHeight / 2).closest('.picture').id")
        browser.find("#picture-2 .close").click()
        assert not is_open() and browser.run("return document.activeElement === arguments[0]", opener)

        opener.send_keys(Keys.ENTER)
        assert is_open()
        for _ in range(3):  # the keyboard stays in it
            ActionChains(browser.driver).send_keys(Keys.TAB).perform()
            assert browser.run("return arguments[0].contains(document.activeElement)", figure)
        ActionChains(browser.driver).send_keys(Keys.ESCAPE).perform()
        assert not is_open()
        assert all(address.startswith(("data:", "file:")) for address in browser.requests())
        assert browser.console() == []
    finally:
        browser.resize(1200, 900)


def test_a_picture_opens_without_a_script(browser: Browser, trained: Path) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(trained)
        browser.find("#picture-1 .open").click()
        assert browser.find("#picture-1").rect["width"] == 1200 and browser.find("#picture-1 .close").is_displayed()
        browser.find("#picture-1 .close").click()
        assert browser.find("#picture-1").rect["width"] < 700
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.skipif(PICTURE is None, reason="SHADOWLAB_REPORT_PICTURE names no file: no picture is wanted")
def test_picture_for_the_readme(browser: Browser, incident: Path) -> None:
    assert PICTURE is not None
    browser.open(incident)
    bottom = browser.run("return document.querySelector('#incidents article').getBoundingClientRect().bottom + scrollY")
    file = browser.screenshot(ROOT / PICTURE, height=math.ceil(bottom) + 16)
    assert 20_000 < file.stat().st_size < 400_000
