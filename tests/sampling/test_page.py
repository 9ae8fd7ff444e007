"""The page of scored candidates, as a real browser shows it."""

import json
import random
import re
import threading
import tracemalloc
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from swiftplug.sampling.page.page import SamplesPage
from swiftplug.sampling.rows import REFERENCE, Candidate, Row
from swiftplug.sampling.scoring import Scorer
from swiftplug.sampling.statistics import Statistics

EVIL = "</script><img src=x onerror=alert(1)><b>bold</b><!-- &lt; \u2028 ' \" {{ 7*7 }}"
PLUGIN: Any = None  # the page asks a scorer only for its name, kind and weight
SCORERS = [Scorer("gsm8k", "orm", 2.0, PLUGIN), Scorer("arithmetic", "prm", 1.0, PLUGIN)]


def _candidate(
    index: int, right: bool | None = None, text: str = "An answer.", reasons: Sequence[str] = (), **rest: Any
) -> Candidate:
    scores = {} if right is None else {"gsm8k": float(right), "arithmetic": 0.25}
    rewards: Any = {**scores, "arithmetic": [1.0, 0.25]} if scores else {}
    fields: dict[str, Any] = {
        "finish_reason": "stop",
        "scores": scores,
        "rewards": rewards,
        "score": 0.5,
        "answer": "42",
    } | rest
    return Candidate(index=index, text=text, right=right, reasons=list(reasons), **fields)


def _row(position: int, candidates: list[Candidate], question: str = "How many?", **rest: Any) -> Row:
    prompt = [{"role": "user", "content": question}]
    fields = {"prompt": prompt, "reference": f"It is {position}.", "problem": "", "left_out": ""} | rest
    return Row(id=f"id{position}", position=position, origin=f"d.jsonl:{position + 1}", candidates=candidates, **fields)


def _verdicts(position: int, verdicts: str, **rest: Any) -> Row:
    """A row with a candidate for each letter: `k` right and kept, `r` right, `w` wrong."""
    return _row(
        position,
        [
            _candidate(index, letter != "w", f"{letter} {index}", [] if letter == "k" else ["worse"])
            for index, letter in enumerate(verdicts)
        ],
        **rest,
    )


def _rows() -> list[Row]:
    return [
        _verdicts(0, "kkrrrrrr"),
        _verdicts(1, "wwwwwwww", left_out="all wrong"),
        _verdicts(2, "wkwwrwww", question="鸭子有多少只？🦆"),
        _row(3, [], problem="the server answered 500"),
        _row(
            4,
            [
                _candidate(0, True, EVIL),
                _candidate(1, False, "", ["wrong"], finish_reason="length"),
                _candidate(2, None, "unjudged", ["no score: the server hangs"], score=None, answer=None),
                _candidate(3, True, "It is 4.", finish_reason=REFERENCE),
            ],
        ),
        _verdicts(5, "rrrrrrrr", left_out="too easy", question="Ducks (and geese)?"),
    ]


def _write(path: Path, rows: Sequence[Row], n: int = 8, **options: Any) -> str:
    statistics = Statistics(n)
    given: dict[str, Any] = {"title": "A run", "facts": [("model", "tiny")], "scorers": SCORERS} | options
    with SamplesPage(path, **given) as page:
        for row in rows:
            statistics.add(row)
            page.add(row)
        page.finish(statistics.summary())
    return path.as_uri()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return _write(tmp_path / "report.html", _rows())


def _pills(browser: Any, group: str = "#filters") -> dict[str, int]:
    return {text.rpartition(" ")[0]: int(text.rpartition(" ")[2]) for text in browser.texts(f"{group} .pill")}


def _listed(browser: Any) -> list[str]:
    return [text.split()[0] for text in browser.texts("#list .item")]


def _cards(browser: Any) -> list[str]:
    cards: list[str] = browser.texts(".card .number")
    return cards


def _heading(browser: Any) -> str:
    return str(browser.texts("h2")[0])


def test_figures_and_questions_are_shown(browser: Any, url: str) -> None:
    browser.resize(1400, 900)
    browser.open(url)
    figures = dict(zip(browser.texts(".figures dt"), browser.texts(".figures dd b"), strict=True))
    # Rows 0, 1, 2 and 5 have 8 candidates each, row 4 has 3 beside the reference; 8 + 2 + 8 + 1 of 34 judged are right.
    # Every candidate answers 42, which is mostly right in rows 0 and 5 of the five.
    assert figures == {
        "Rows": "6",
        "Candidates": "35",
        "Kept": "4",  # and the reference
        "Right": "55.9%",
        "Majority": "40%",
        "Weighted majority": "40%",
    }
    assert browser.texts(".chart figcaption > b") == ["pass@k", "Right per row", "gsm8k", "arithmetic"]
    # 1, 0, 1/4, 1/2 and 1 of the rows' candidates are right: 55 %; two are drawn: 1, 0, 1-C(6,2)/C(8,2), 1 and 1.
    assert browser.texts(".chart:first-child .value") == ["55%", "69.3%", "69.6%", "75%"]
    counts = browser.texts(".tallies td")
    assert dict(zip(counts[::2], counts[1::2], strict=True)) == {
        "all wrong": "1",
        "the server answered 500": "1",
        "too easy": "1",
        "worse": "29",
        "wrong": "1",
        "no score: the server hangs": "1",
        "stop": "34",
        "length": "1",
    }
    assert _pills(browser) == {"All": 6, "All right": 2, "Some right": 2, "None right": 1, "Kept": 3, "Left out": 3}
    assert _heading(browser) == "Question #0"
    assert browser.texts(".reference .text") == ["It is 0."]
    assert _cards(browser) == [f"#{index}" for index in range(8)]
    assert browser.texts(".card:first-child .chips li") == ["score 0.5", "gsm8k 1", "arithmetic 0.25"]
    assert browser.texts(".card:first-child .steps li") == ["1", "0.25"]
    # The candidates stand side by side.
    tops = browser.ask("[...document.querySelectorAll('.card')].map((card) => card.offsetTop)")
    assert len(set(tops)) == 3 and tops[0] == tops[1] == tops[2]
    assert not [event for event in browser.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]


def test_what_a_model_wrote_stays_text(browser: Any, tmp_path: Path) -> None:
    evil = _candidate(
        0, False, EVIL, [EVIL], finish_reason=EVIL, answer=EVIL, scores={EVIL: 1.0}, rewards={EVIL: [1.0]}
    )
    prompt: list[dict[str, Any]] = [
        {"role": EVIL, "content": EVIL},
        {"role": "user", "content": None, "tool_calls": [{"name": EVIL}]},
    ]
    rows = [
        Row(EVIL, EVIL, prompt, reference=EVIL, candidates=[evil], left_out=EVIL),
        Row("b", EVIL, prompt, reference=EVIL, position=1, problem=EVIL, left_out=EVIL),
    ]
    scorers = [Scorer(name, "orm", 1.0, PLUGIN) for name in (EVIL, "constructor", "__proto__")]
    url = _write(tmp_path / "report.html", rows, 1, title=EVIL, facts=[(EVIL, EVIL)], scorers=scorers)
    for place in ("row=0", "row=1", "q=%3Cimg"):
        browser.open(f"{url}#{place}")
        assert browser.ask("document.querySelectorAll('img, b b, pre, .text b').length") == 0
        assert browser.ask("[...document.scripts].length") == 3
        assert "Page.javascriptDialogOpening" not in {event["method"] for event in browser.events}
    browser.open(f"{url}#row=0")
    shown = "document.querySelector('.card .text').textContent"
    assert browser.ask(shown) == EVIL
    assert browser.ask("document.title") == f"{EVIL} · samples"
    assert browser.texts("h1, .facts dt, .facts dd, .origin, .id, .card .finish") == [" ".join(EVIL.split())] * 6


def test_texts_come_through_as_they_are(browser: Any, tmp_path: Path) -> None:
    texts = [
        "",
        "答案是 42。",
        "👩‍👩‍👧🎉",
        "line\n\n  indented\ttab",
        "a lone \ud83d half",
        "nul \x00 and \x1b[31m",
        "\r\n",
    ]
    rows = [_row(0, [_candidate(index, True, text) for index, text in enumerate(texts)])]
    browser.open(_write(tmp_path / "report.html", rows))
    shown = [json.loads(text) for text in browser.ask(TEXTS)]
    assert shown == ["empty", *texts[1:]]


TEXTS = "[...document.querySelectorAll('.card .text')].map((node) => JSON.stringify(node.textContent))"


def test_the_fragment_selects_what_is_shown(browser: Any, url: str) -> None:
    browser.open(f"{url}#filter=kept&row=2")
    assert _listed(browser) == ["#0", "#2", "#4"]
    assert _heading(browser) == "Question #2"
    assert browser.texts(".detail nav span") == ["2 of 3"]
    browser.open(f"{url}#filter=left-out&row=3")
    assert _listed(browser) == ["#1", "#3", "#5"]
    assert browser.texts(".notice") == ["No candidates: the server answered 500"]
    browser.open(f"{url}#filter=some-right&show=kept&row=2")
    assert _listed(browser) == ["#2", "#4"]
    assert _cards(browser) == ["#1"]
    browser.open(f"{url}#filter=none-right")
    assert _listed(browser) == ["#1"]
    browser.open(f"{url}#filter=all-right&sort=least-right")
    assert _listed(browser) == ["#0", "#5"]
    browser.open(f"{url}#sort=most-right")
    assert _listed(browser) == ["#0", "#5", "#4", "#2", "#1", "#3"]
    browser.open(f"{url}#filter=nonsense&row=99&sort=__proto__&show=1")  # a stale link still shows something
    assert _heading(browser) == "Question #0" and len(_listed(browser)) == 6


def test_candidates_are_filtered(browser: Any, url: str) -> None:
    browser.open(f"{url}#row=4")
    assert _pills(browser, ".bar") == {"All": 4, "Right": 2, "Wrong": 1, "Kept": 2}
    assert browser.texts(".card .verdict") == ["✓ right", "✗ wrong", "not judged", "✓ right"]
    assert browser.texts(".card .finish") == ["stop", "length", "stop", "the reference"]
    browser.click("[data-key=show-wrong]")
    assert _cards(browser) == ["#1"] and browser.texts(".card .text") == ["empty"]
    assert browser.texts(".card .reasons") == ["Not kept wrong"]
    browser.click("[data-key=show-kept]")
    assert _cards(browser) == ["#0", "#3"]
    assert browser.ask("location.hash") == "#filter=all&show=kept&row=4"


def test_keys_move_and_search(browser: Any, url: str) -> None:
    browser.open(url)
    for key, heading in [("j", 1), ("ArrowRight", 2), ("k", 1), ("ArrowLeft", 0), ("k", 0)]:
        browser.press(key)
        assert _heading(browser) == f"Question #{heading}"
    browser.ask("document.querySelector('#list [aria-current]').focus()")
    browser.press("ArrowDown")
    assert _heading(browser) == "Question #1"
    assert browser.ask("document.activeElement.textContent").startswith("#1")
    browser.press("/")
    for letter in "(and jK":
        browser.press(letter)
    assert browser.ask("document.getElementById('search').value") == "(and jK"
    assert _wait_for(browser, "document.querySelectorAll('.item').length === 0")
    assert browser.texts(".nothing") == ["No question matches."]
    for _ in range(3):
        browser.send("Input.dispatchKeyEvent", type="keyDown", key="Backspace", windowsVirtualKeyCode=8)
    assert _wait_for(browser, "document.querySelectorAll('.item').length === 1")
    assert _heading(browser) == "Question #5" and browser.texts("#detail mark") == ["(and"]
    assert _pills(browser) == {"All": 1, "All right": 1, "Some right": 0, "None right": 0, "Kept": 0, "Left out": 1}
    browser.press("Escape")
    assert browser.ask("document.activeElement.tagName") == "BODY"


def _wait_for(browser: Any, condition: str) -> bool:
    script = f"""new Promise((done) => {{
        const started = Date.now();
        const late = () => Date.now() - started > 30000;
        const look = () => ({condition}) || late() ? done({condition}) : setTimeout(look, 20);
        look();
    }})"""
    return bool(browser.ask(script))


def test_search_reads_every_text(browser: Any, url: str) -> None:
    for query, positions in {
        "鸭子": ["#2"],
        "it is 3": ["#3"],
        "ONERROR": ["#4"],
        "id5": ["#5"],
        "w 7": ["#1", "#2"],
    }.items():
        browser.open(f"{url}#q={query}")
        assert _listed(browser) == positions, query


def test_a_run_without_judges_has_no_rightness(browser: Any, tmp_path: Path) -> None:
    rows = [_row(0, [_candidate(0), _candidate(1, reasons=["worse"])])]
    browser.open(_write(tmp_path / "report.html", rows, 2))
    assert browser.texts(".figures dt") == ["Rows", "Candidates", "Kept"]
    assert _pills(browser) == {"All": 1, "Kept": 1, "Left out": 0}
    assert _pills(browser, ".bar") == {"All": 2, "Kept": 1}
    assert browser.texts(".verdict, .pips i") == []
    browser.open(_write(tmp_path / "empty.html", [], 2))
    assert browser.texts(".nothing") == ["No question matches."]


def test_long_texts_and_many_rows_are_cut_and_say_so(browser: Any, tmp_path: Path) -> None:
    text = "start " + "x" * 50_000 + " end"
    rows = [_row(position, [_candidate(0, True, text)]) for position in range(12)]
    browser.open(_write(tmp_path / "report.html", rows, 1, max_rows=5))
    assert len(_listed(browser)) == 5
    assert "The first 5 of 12 rows" in browser.texts(".foot")[0]
    assert browser.texts(".figures dd b")[0] == "12"
    (shown,) = browser.texts(".card .text")
    assert shown.startswith("start x") and shown.endswith("x end")
    assert "30,010 characters not shown" in shown and len(shown) < 21_000


def test_many_candidates_share_bars(browser: Any, tmp_path: Path) -> None:
    generator = random.Random(0)
    rights = [generator.randint(0, 200) for _ in range(40)] + [200]
    rows = [_verdicts(position, "k" * right + "w" * (200 - right)) for position, right in enumerate(rights)]
    browser.resize(1400, 900)
    browser.open(_write(tmp_path / "report.html", rows, 200))
    tips = browser.ask("[...document.querySelectorAll('.chart:nth-child(2) li')].map((bar) => bar.title)")
    assert len(tips) <= 33
    for tip in tips:
        low, high, count = re.fullmatch(r"(\d+) (?:to (\d+) )?right: (\d+)", tip).groups()  # type: ignore[union-attr]
        assert int(count) == sum(int(low) <= right <= int(high or low) for right in rights), tip
    assert sum(int(tip.rpartition(" ")[2]) for tip in tips) == len(rights)
    assert len(_cards(browser)) == 200


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server of the test's folder, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: Any) -> None:
            asked.append(self.path)

        def log_error(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_the_page_asks_for_nothing_and_runs_only_its_own_script(
    browser: Any, tmp_path: Path, served: tuple[str, list[str]]
) -> None:
    address, asked = served
    page = tmp_path / "report.html"
    _write(page, _rows())
    hostile = f"""<script>document.title = "owned"</script>
        <img src="{address}/image" onerror="document.title = 'owned'">
        <link rel="stylesheet" href="{address}/style"><script src="{address}/script"></script></body>"""
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", hostile), encoding="utf-8")
    browser.open(f"{address}/report.html#row=4")
    assert _heading(browser) == "Question #4"
    assert browser.ask("document.title") == "A run · samples"
    assert browser.ask(f"fetch('{address}/data').then(() => 'answered', () => 'refused')") == "refused"
    assert asked == ["/report.html"]


def test_figures_stand_without_scripts(browser: Any, url: str) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(url)
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.texts("noscript p") == ["Enable JavaScript to browse the questions and their candidates."]
    assert browser.texts(".figures dd b")[0] == "6"
    assert browser.ask("getComputedStyle(document.getElementById('explorer')).display") == "none"


# The least contrast of a text with what lies under it, by the formula of WCAG 2.2, section 1.4.3, and that text.
CONTRAST = """(() => {
    const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const channels = (color, ground) => {
        context.fillStyle = ground; context.fillRect(0, 0, 1, 1);
        context.fillStyle = color; context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const luminance = (color, ground) => channels(color, ground).map((c) => linear(c / 255))
        .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
    const clear = (color) => color === "rgba(0, 0, 0, 0)" || color === "transparent";
    const under = (node) => {
        while (node && clear(getComputedStyle(node).backgroundColor)) node = node.parentElement;
        return node ? getComputedStyle(node).backgroundColor : "white";
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let least = [99, ""];
    while (walker.nextNode()) {
        const node = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.disabled) continue;
        const ground = under(node);
        const both = [luminance(getComputedStyle(node).color, ground), luminance(ground, "white")];
        const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
        if (contrast < least[0]) least = [contrast, `${node.className}: ${walker.currentNode.data}`];
    }
    return least;
})()"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1400, 420])
def test_every_text_can_be_read(browser: Any, tmp_path: Path, dark: bool, width: int) -> None:
    rows = _rows()
    rewards = [place / 8 for place in range(9)]
    rows[0] = _row(
        0, [_candidate(0, True, rewards={"arithmetic": rewards}), _candidate(1, False, "w" * 30_000, ["wrong"])]
    )
    url = _write(tmp_path / "report.html", rows)
    browser.resize(width, 900, dark)
    for place in ("row=0", "row=1", "row=3", "row=4&q=answer"):
        browser.open(f"{url}#{place}")
        assert browser.ask("matchMedia('(prefers-color-scheme: dark)').matches") is dark
        contrast, text = browser.ask(CONTRAST)
        assert contrast >= 4.5, text
        assert browser.ask("document.documentElement.scrollWidth <= innerWidth")


def test_a_failed_page_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(AttributeError), SamplesPage(path, title="t", facts=[], scorers=[]) as page:
        page.add(_rows()[0])
        page.finish(None)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    _write(path, _rows())
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    rows = [_row(position, [_candidate(0, True, "x" * 10_000)]) for position in range(3)]
    with SamplesPage(tmp_path / "report.html", title="t", facts=[], scorers=SCORERS, max_rows=400) as page:
        page.add(rows[0])
        tracemalloc.start()
        for place in range(1000):
            page.add(rows[place % 3])
        grown, _ = tracemalloc.get_traced_memory()
        page.finish(Statistics(1).summary())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert grown < 100_000 and peak < 2_000_000  # bytes; the page has 4 million
    assert (tmp_path / "report.html").stat().st_size > 4_000_000
    assert not re.search(
        r"[<>&]", (tmp_path / "report.html").read_text().split('type="application/json">')[2].split("</")[0]
    )
