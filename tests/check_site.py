"""Whether every link of a built site leads somewhere: `python tests/check_site.py FOLDER`.

Files and anchors of the site are looked for; other addresses are named only where a page would fetch them by
itself (scripts, styles, pictures). Exit status 1 with a line for each problem.
"""

import argparse
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
NO_FETCH = {"canonical", "next", "prev", "alternate", "edit"}


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, bool]] = []  # the address, whether the page fetches it by itself
        self.anchors: set[str] = {"", "__skip"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        for name in ("href", "src"):
            if name in values and not (tag == "link" and values.get("rel") in NO_FETCH):
                self.links.append((values[name], (tag, name) in FETCHED))


def problems(site: Path) -> list[str]:
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site)
        for link, fetched in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if fetched and parts.scheme != "data":
                    found.append(f"{where}: fetches {link}")
                continue
            if path.name == "404.html":  # its links are from the site's root
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{where}: {link}: no such file")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{where}: {link}: no such place on that page")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("site", type=Path, help="Folder of the built site.")
    site = parser.parse_args().site.resolve()
    pages = len(list(site.rglob("*.html")))
    if not pages:
        print(f"error: {site}: no page there; build it with make docs", file=sys.stderr)
        return 2
    found = problems(site)
    for problem in found:
        print(problem)
    print(f"{site}: {pages} pages, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
