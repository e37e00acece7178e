"""The page in a real browser: on a desk and on a phone, in light and dark, with and without scripts."""

import json
from pathlib import Path

import pytest

from paperlab.report import __main__ as front
from tests.report import material
from tests.report.browser import Browser, chromium

ROOT = Path(__file__).parents[2]
PROGRAM = chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium (sh scripts/chromium.sh installs it)")

CONTRAST = """(() => {
  const channels = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = channels(getComputedStyle(at).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const ratio = (a, b) => {
    const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  for (const block of document.querySelectorAll("details")) block.open = true;
  const low = [];
  let seen = 0;
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, .hidden, .skip")) continue;
    seen++;
    const found = ratio(channels(getComputedStyle(element).color).slice(0, 3), ground(element));
    if (found < 4.5) low.push([texts.currentNode.data.trim().slice(0, 30), element.className, found]);
  }
  for (const swatch of document.querySelectorAll(".swatch:not(.none)")) {
    const found = ratio(channels(getComputedStyle(swatch).color).slice(0, 3), ground(swatch.parentElement));
    if (found < 3) low.push([swatch.className, found]);
  }
  return JSON.stringify({seen, low});
})()"""

WIDE = """JSON.stringify([...document.querySelectorAll("body *")]
  .filter((e) => !e.closest(".scroll, pre, .hidden, .skip") && e.checkVisibility())
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
  .map((e) => [e.tagName, String(e.className), e.textContent.slice(0, 30)]).slice(0, 5))"""

NAMELESS = """JSON.stringify([
  ...[...document.querySelectorAll("img")].filter((e) => !e.alt),
  ...[...document.querySelectorAll("input")].filter((e) => !e.labels.length),
  ...[...document.querySelectorAll("button, a, summary")].filter((e) => !e.textContent.trim()),
  ...[...document.querySelectorAll("[tabindex]")].filter((e) => !e.ariaLabel && e.tagName !== "PRE"),
  ...[...document.querySelectorAll("table")].filter((e) => !e.caption || !e.querySelector("thead th")),
  ...[...document.querySelectorAll("[id]")].filter((e) => document.querySelectorAll(`[id="${CSS.escape(e.id)}"]`).length > 1),
  ...[...document.querySelectorAll('a[href^="#"]')].filter((e) => !document.getElementById(decodeURIComponent(e.hash.slice(1)))),
].map((e) => e.outerHTML.slice(0, 120)))"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page of all that there can be: whole, odd and damaged runs, incidents, claims, benchmarks, faults."""
    folder = tmp_path_factory.mktemp("report")
    for seed, variant in enumerate(("", "scalar", "none", "fixed")):
        made = material.run(folder / "runs" / f"gla-{variant or 'default'}", variant, seed=seed, steps=1000)
    material.incidents(made)
    material.picture(made / "gates.svg")
    for seed in range(6):
        material.run(
            folder / "runs" / f"sweep-with-a-long-name-{seed}", "scalar", seed=10 + seed, depth=seed, width=8 * seed
        )
    material.damaged(folder / "runs")
    material.odd(folder / "runs")
    (folder / "results").mkdir()
    (folder / "results" / "claims").symlink_to(ROOT / "results" / "claims")
    material.bench(folder / "results")
    material.faults(folder / "results")
    out = folder / "report.html"
    assert front.main([f"--runs={folder / 'runs'}", f"--results={folder / 'results'}", f"--out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(str(PROGRAM), tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_can_be_read_and_asks_for_nothing(browser, report, width, dark):
    browser.look(width=width, dark=dark)
    browser.open(report.as_uri())
    contrast = json.loads(browser.run(CONTRAST))
    assert contrast["seen"] > 500
    assert contrast["low"] == []
    assert json.loads(browser.run(WIDE)) == []
    assert browser.run("document.documentElement.scrollWidth") == width
    assert json.loads(browser.run(NAMELESS)) == []
    assert browser.complaints() == []
    assert [address for address in browser.requests() if not address.startswith("data:")] == [report.as_uri()]


def test_light_and_dark_differ_and_can_be_chosen(browser, report):
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.look(width=1280)
    browser.open(report.as_uri())
    light = browser.run(ground)
    browser.run("document.getElementById('theme-dark').click()")
    dark = browser.run(ground)
    assert light != dark
    browser.run("document.getElementById('theme-light').click()")
    browser.look(width=1280, dark=True)
    assert browser.run(ground) == light
    browser.run("document.getElementById('theme-auto').click()")
    assert browser.run(ground) == dark
    browser.look(width=1280, dark=True, media="print")
    assert browser.run(ground) == light


def test_the_scale_is_chosen_chart_by_chart(browser, report):
    browser.look(width=1280)
    browser.open(report.as_uri())
    shown = """(() => { const all = [...document.querySelectorAll('.chart:has(.scales)')].filter((e) => e.checkVisibility());
      return JSON.stringify(all.slice(0, 2).map((e) => [...e.querySelectorAll('.view')]
        .filter((v) => v.checkVisibility()).map((v) => v.className))); })()"""
    assert json.loads(browser.run(shown)) == [["view linear"], ["view linear"]]
    browser.run("document.querySelector('.chart .scales input[value=log]').click()")
    assert json.loads(browser.run(shown)) == [["view log"], ["view linear"]]


def test_the_read_out_tells_the_values_by_pointer_and_keyboard(browser, report):
    browser.look(width=1280)
    browser.open(report.as_uri())
    place = """(() => { const plot = document.querySelector('.chart .plot');
      plot.scrollIntoView({block: 'center', behavior: 'instant'});
      const box = plot.getBoundingClientRect(); return [box.left + 0.5 * box.width, box.top + 0.5 * box.height]; })()"""
    browser.point(*browser.run(place))
    read = "document.querySelector('.reading').textContent"
    assert "step 500" in browser.run(read)
    assert "gla-scalar" in browser.run(read)
    browser.run("document.querySelector('.chart .plot').focus()")
    browser.press("ArrowRight")
    assert "step 600" in browser.run(read)
    browser.press("End")
    assert "step 1000" in browser.run(read)
    spoken = browser.run("document.querySelector('.chart [role=status]').textContent")
    told = json.loads((report.parent / "runs" / "gla-scalar" / "summary.json").read_text())["val_bits_per_byte"]
    assert f"gla-scalar {told:.5g}" in spoken
    browser.press("Escape")
    assert browser.run("document.querySelector('.reading')") is None


def test_runs_are_sorted_hidden_and_filtered(browser, report):
    browser.look(width=1280)
    browser.open(report.as_uri())
    names = "[...document.querySelectorAll('.runs')[0].tBodies[0].rows].filter((r) => !r.hidden).map((r) => r.cells[0].textContent)"
    before = browser.run(names)
    browser.run("document.querySelector('.runs th button').click()")
    assert browser.run(names) == sorted(before)
    browser.run("document.querySelector('.runs th button').click()")
    assert browser.run(names) == sorted(before, reverse=True)
    browser.run("document.querySelectorAll('.runs th button')[3].click()")
    values = "[...document.querySelectorAll('.runs')[0].tBodies[0].rows].map((r) => r.cells[3].dataset.value)"
    told = browser.run(values)
    known = [float(value) for value in told if value]
    assert known == sorted(known)
    assert "" not in told[: len(known)]
    browser.run("document.querySelector('[data-toggles]').click()")
    key = browser.run("document.querySelector('[data-toggles]').dataset.toggles")
    lines = f"[...document.querySelectorAll('.plot g[data-key=\"{key}\"]')]"
    assert browser.run(f"{lines}.length > 2 && {lines}.every((line) => getComputedStyle(line).display === 'none')")
    browser.run("document.querySelector('.filter input').focus()")
    browser.tell("Input.insertText", text="sweep")
    assert sorted(browser.run(names)) == [f"sweep-with-a-long-name-{i}" for i in range(6)]


def test_a_link_unfolds_what_it_leads_to(browser, report):
    browser.look(width=390)
    browser.open(report.as_uri())
    key = browser.run("document.querySelector('.runs th a').hash.slice(1)")
    assert browser.run(f"document.getElementById('{key}').open") is False
    browser.run("document.querySelector('.runs th a').click()")
    browser.run("new Promise((done) => setTimeout(done, 50))")
    assert browser.run(f"document.getElementById('{key}').open") is True


def test_without_scripts_everything_is_there(browser, report):
    browser.look(width=390)
    browser.tell("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(report.as_uri())
        text = browser.run("document.body.textContent")
        assert browser.run("document.documentElement.classList.contains('scripted')") is False
        assert browser.run("document.documentElement.scrollWidth") == 390
    finally:
        browser.tell("Emulation.setScriptExecutionDisabled", value=False)
    assert all(name in text for name in ("gla-scalar", "one-point", "3.lowest", "our step over a jit written by hand"))
    assert all(name in text for name in ("config.json is a folder", "99 of 100", "kill during a save"))


def test_a_page_of_nothing_stands(browser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert front.main([]) == 0
    browser.look(width=390)
    browser.open((tmp_path / "report.html").as_uri())
    assert browser.complaints() == []
    assert "No runs in runs." in browser.run("document.body.textContent")
