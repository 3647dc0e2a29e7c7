"""The report page, read as a browser would read it; what its script does was looked at in one."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

import tests.patience  # noqa: F401 - a setting for all of hypothesis
from pytest_nsbox.html.page import OUTCOMES, Entry, Page, render
from pytest_nsbox.policy.table import short_bytes
from tests.html.reader import Reader

MIB = 2**20


def a_test(nodeid: str = "test_a.py::test_a", outcome: str = "passed", **rest: Any) -> Entry:
    return Entry(**{"nodeid": nodeid, "outcome": outcome, "limits": {}, "usage": {}, **rest})


def read(*found: Entry, about: tuple[str, ...] = (), host: dict[str, object] | None = None) -> Reader:
    return Reader(render(Page(name="shop", when="today", about=about, host=host or {}, tests=found)))


def used(wall: float = 0.1, **more: float) -> dict[str, float]:
    return {"wall_s": wall, "cpu_s": wall, **more}


def test_the_heaviest_tests_come_first_and_those_without_a_box_last():
    page = read(a_test("plain"), a_test("light", usage=used(0.1)), a_test("heavy", usage=used(2.0)))
    assert [row[0] for row in page.rows()] == ["heavy", "light", "plain"]
    assert page.rows()[-1][2:] == ["-", "-"]


def test_figures_are_shown_as_in_the_terminal_and_sorted_by_their_exact_value():
    page = read(a_test(usage=used(1.25, memory_peak_bytes=14.25 * MIB, io_read_bytes=4096)))
    assert page.heads() == ["test", "outcome", "wall", "cpu", "memory", "read"]
    assert page.cell(0, "wall") == ({"class": "number", "data-value": "1.25"}, "1.25s")
    assert page.cell(0, "memory")[0]["data-value"] == "14942208.0"
    assert page.cell(0, "memory")[1] == short_bytes(14.25 * MIB)
    assert page.cell(0, "read")[1] == "4K"


def test_a_column_that_says_nothing_is_left_out():
    page = read(a_test(usage=used(cpu_throttled_s=0.0, oom_kills=0, io_write_bytes=0, pids_peak=0)))
    assert page.heads() == ["test", "outcome", "wall", "cpu", "pids"]


def test_memory_is_shown_as_a_share_of_its_limit_and_marked_where_little_is_left():
    def of(peak: int) -> dict[str, str | None]:
        page = read(a_test(usage=used(memory_peak_bytes=peak * MIB, memory_limit_bytes=100 * MIB)))
        return page.cell(0, "memory")[0]

    assert (of(16)["class"], of(16)["style"], of(16)["title"]) == ("number bar", "--share: 16%", "16% of mem")
    assert of(90)["class"] == "number bar near"
    assert of(120)["style"] == "--share: 100%"


def test_a_test_shows_its_limits_as_it_would_be_marked_and_what_it_told():
    page = read(a_test(limits={"cpu": "20%", "mem": "256M"}, texts=[("call failed", "E   assert 0\nat line 3")]))
    assert "@pytest.mark.sandbox(cpu='20%', mem='256M')" in page.texts("code")
    assert page.texts("h2") == ["call failed"]
    assert page.texts("pre") == ["E   assert 0\nat line 3"]


def test_tests_are_counted_by_outcome_the_worst_first():
    page = read(*(a_test(str(number), outcome) for number, outcome in enumerate(("passed", "failed", "passed", "odd"))))
    assert [text.strip() for text in page.texts("label")] == ["1 failed", "2 passed", "1 odd"]
    assert page.cell(1, "outcome")[0]["data-value"] == str(OUTCOMES.index("failed"))


def test_the_machine_and_what_boxes_are_made_of_are_told():
    page = read(about=("sandbox: every test in a box",), host={"kernel": "6.1", "memory_bytes": 2**30})
    assert "every test in a box" in page.texts("p")
    assert list(zip(page.texts("dt"), page.texts("dd"), strict=True)) == [("kernel", "6.1"), ("memory", "1.0 GiB")]


HOSTILE = st.text(st.sampled_from("<>&\"'/=` \n\t\x1b\x00\u202e\udcffaé!-[]"), max_size=20)


@given(HOSTILE, HOSTILE, HOSTILE)
@example("<script>alert(1)</script>", "</pre><script>alert(1)</script>", "x' onclick='alert(1)")
@example("--><!--", "]]>", '"><img src=x>')
def test_what_a_test_says_is_text_and_never_markup(nodeid, text, outcome):
    plain = read(a_test("x", "y", usage=used(), limits={"mem": "1M"}, texts=[("t", "z")]))
    page = read(a_test(nodeid, outcome, usage=used(), limits={"mem": nodeid}, texts=[(text, text or "z")]))
    assert [tag for tag, _, _ in page.elements] == [tag for tag, _, _ in plain.elements]
    assert [set(attributes) for _, attributes, _ in page.elements] == [set(each) for _, each, _ in plain.elements]
    if text.isprintable():
        assert page.texts("pre") == [text or "z"]
    assert all(char.isprintable() or char == "\n" for char in "".join(page.texts("summary")[1:]))


def test_the_page_asks_nobody_for_more():
    page = read(a_test(usage=used()))
    policy = next(attributes["content"] for tag, attributes, _ in page.elements if "http-equiv" in attributes)
    assert (policy or "").startswith("default-src 'none'")
    assert not any({"src", "href"} & set(attributes) for _, attributes, _ in page.elements)
    (style,) = page.texts("style")
    assert not any(word in style for word in ("url(", "@import"))


def test_a_page_of_no_tests_is_a_page():
    assert read().heads() == ["test", "outcome"]
    assert read().rows() == []
