"""What a file is by its first bytes, for messages that say what lies there."""

HEAD_BYTES = 64
_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\x93NUMPY": "NumPy array",
    b"\x89HDF": "HDF5 file",
    b"PK\3\4": "ZIP archive",
    b"%PDF": "PDF",
    b"version https://git-lfs": "Git LFS pointer (git lfs pull fetches the file)",
}
_HEIF = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


def file_kind(head: bytes) -> str | None:
    """The name of the format that a file with these first HEAD_BYTES has, None for an unknown one."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return "HEIC" if head[8:12] in _HEIF else "AVIF" if head[8:12] == b"avif" else "MP4"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "page of HTML"
    return next((kind for start, kind in _STARTS.items() if head.startswith(start)), None)


def misnamed(head: bytes, size: int, suffix: str, expected: str) -> str | None:
    """What lies in a file of `size` bytes named `suffix` that should be of the format `expected`, and what to
    do; None where it may be one."""
    if size == 0:
        return "an empty file; replace it"
    kind = file_kind(head)
    if kind == expected:
        return None
    if kind is None:
        return f"not a readable {expected} file ({size} bytes); replace it"
    article = "an" if kind[0] in "AH" and kind != "HEIC" else "a"
    if kind in ("JPEG", "PNG", "WEBP", "BMP"):
        return f"{article} {kind} named {suffix}; rename it .{kind.lower().replace('jpeg', 'jpg')}"
    return f"{article} {kind} named {suffix}; replace it"
