"""Text from outside (paths, URLs, headers, what a server answers) as it may be shown and kept."""

import re
import unicodedata

_SECRETS = re.compile(r"//[^/\s]*@")  # up to the last @ of the host's part: a password may hold one
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://\S+")
# Control characters, which a terminal obeys, those that turn the direction of writing, and halves of letters,
# which no stream takes.
_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")


def without_secrets(url: str) -> str:
    """A URL without user, password, query (a signature) and fragment; any other text as it is."""
    if "://" not in url:
        return url
    return re.split(r"[?#]", _SECRETS.sub("//", url), maxsplit=1)[0]


def urls_without_secrets(text: str) -> str:
    """A text whose URLs are without secrets."""
    return _URL.sub(lambda found: without_secrets(found[0]), text)


def printable(text: str) -> str:
    """The text with control characters, but line feeds and tabs, as escapes: no terminal is driven by it."""
    if text.isprintable():
        return text
    return "".join(_escaped(letter) for letter in text)


def in_a_line(text: str, limit: int | None = None) -> str:
    """The text with all control characters as escapes; "..." for what is beyond so many characters."""
    shown = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    return shown if limit is None or len(shown) <= limit else f"{shown[:limit]}..."


def _escaped(letter: str) -> str:
    if letter in "\n\t" or unicodedata.category(letter) not in _CATEGORIES:
        return letter
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
