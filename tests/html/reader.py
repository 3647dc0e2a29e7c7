"""Reads a report page as a browser would."""

from __future__ import annotations

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Elements of a page: (tag, attributes, text) in their order, the text with that of what is inside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        parts: list[str] = []
        self.elements.append((tag, dict(attrs), parts))
        if tag not in ("meta", "input"):
            self._open.append((tag, parts))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, parts in self._open:
            parts.append(data)

    def texts(self, tag: str) -> list[str]:
        return ["".join(parts) for name, _, parts in self.elements if name == tag]

    def rows(self) -> list[list[str]]:
        """Texts of the cells of each test's row."""
        found: list[list[str]] = []
        for tag, _, parts in self.elements:
            if tag == "tr":
                found.append([])
            elif tag == "td":
                found[-1].append("".join(parts))
        return [row for row in found if row]

    def heads(self) -> list[str]:
        return self.texts("th")

    def cell(self, row: int, head: str) -> tuple[dict[str, str | None], str]:
        cells = [(attributes, "".join(parts)) for tag, attributes, parts in self.elements if tag == "td"]
        return cells[row * len(self.heads()) + self.heads().index(head)]

    def told(self) -> dict[str, dict[str, str]]:
        """What each test has to tell: text by title, by the test's name."""
        found: dict[str, dict[str, str]] = {}
        test: dict[str, str] | None = None
        title = ""
        for tag, _, parts in self.elements:
            text = "".join(parts)
            if tag == "tr":
                test = None
            elif tag == "code" and test is None:
                test = found[text.partition("::")[2]] = {}
            elif tag == "h2":
                title = text
            elif tag == "pre" and test is not None:
                test[title] = text
        return found
