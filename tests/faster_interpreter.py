"""Triton's interpreter patches its language at every call of one jitted function by another: half of a test's
time.

Here it is patched once a launch. The values are those of the interpreter as it is.
"""

from types import SimpleNamespace
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def patch_once_a_launch() -> None:
    patch = interpreter._patch_lang
    # Kernels see the language as `tl`, Triton's own library (tl.sum) as `core`.
    both = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    patched: list[Any] = []

    def once(function: Any) -> Any:
        if patched:
            return interpreter._LangPatchScope()
        scope = patch(both)
        restore = scope.restore

        def end() -> None:
            patched.clear()
            restore()

        scope.restore = end
        patched.append(scope)
        return scope

    interpreter._patch_lang = once
