"""For the site alone: what the pages link outside of docs/ comes along, and every page as Markdown beside it.

On a hosting site `../kernels/README.md` is a file of the repository. Here it becomes the page
`repository/kernels/README.md`, as every file outside of docs/ that a page links, so that the same links work.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

OUTSIDE = "repository/"
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Every page of a command into the navigation."""
    names = sorted(path.stem for path in (Path(config.docs_dir) / "commands").glob("*.md"))
    pages = [{name: f"commands/{name}.md"} for name in names if name != "index"]
    (section,) = (part["Commands"] for part in config.nav or [] if "Commands" in part)
    section += pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside that the navigation names or any page links, those that are added included."""
    root = Path(config.config_file_path).parent
    in_nav = {name for name in _names(config.nav) if name.startswith(OUTSIDE)}
    waiting = [name.removeprefix(OUTSIDE) for name in in_nav]
    for page in files.documentation_pages():
        waiting += _targets(page.content_string, _home(page.src_uri, config))
    while waiting:
        target = waiting.pop()
        place = _place(target)
        if files.get_file_from_path(place) is not None or not (root / target).is_file():
            continue
        file = File.generated(config, place, abs_src_path=str(root / target))
        file.inclusion = InclusionLevel.INCLUDED if place in in_nav else InclusionLevel.NOT_IN_NAV
        files.append(file)
        if file.is_documentation_page():
            waiting += _targets(file.content_string, _home(place, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository as links between files of the site."""
    home = _home(page.file.src_uri, config)

    def site_link(found: re.Match[str]) -> str:
        target = _resolved(found[2], home)
        if target is None:
            return found[0]
        link = posixpath.relpath(_place(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{found[1]}{link}{found[3] or ''}{found[4]}"

    parts = CODE.split(markdown)
    return "".join(part if number % 2 else LINK.sub(site_link, part) for number, part in enumerate(parts))


def on_post_build(config: MkDocsConfig) -> None:
    """Each page of docs/ as Markdown too, for programs that read (llms.txt names them)."""
    source, site = Path(config.docs_dir), Path(config.site_dir)
    for path in source.rglob("*.md"):
        place = site / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())


def _names(nav: Any) -> list[str]:
    """The files that the navigation names."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav or []
    return [name for part in parts for name in _names(part)]


def _home(src_uri: str, config: MkDocsConfig) -> str:
    """The folder of a page in the repository."""
    docs = Path(config.docs_dir).name
    outside = src_uri.startswith(OUTSIDE)
    return posixpath.dirname(src_uri.removeprefix(OUTSIDE) if outside else f"{docs}/{src_uri}")


def _targets(markdown: str, home: str) -> list[str]:
    """What a page links, as paths in the repository."""
    text = "".join(CODE.split(markdown)[::2])
    found = (_resolved(link[1], home) for link in LINK.findall(text))
    return [target for target in found if target is not None]


def _resolved(link: str, home: str) -> str | None:
    """A relative link as a path in the repository; None for an address."""
    if ":" in link:
        return None
    return posixpath.normpath(posixpath.join(home, link))


def _place(target: str) -> str:
    """Where a file of the repository lies on the site."""
    inside = target.startswith("docs/")
    return target.removeprefix("docs/") if inside else f"{OUTSIDE}{target}"
