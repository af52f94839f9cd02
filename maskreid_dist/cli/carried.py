"""Where the rendered data set is that the project carries: 25 MB under a licence of their own, so they come
with a checkout, or as a distribution beside this one."""

from importlib.util import find_spec
from pathlib import Path

from maskreid_dist.errors import UserError
from maskreid_shards.manifest import MANIFEST

CHECKOUT = Path(__file__).resolve().parents[2]  # if this package lies in one
WALKERS = "shards/walkers"  # of a checkout; what commands take that were told no shards
PACKAGE = "maskreid_walkers"  # files alone, of the distribution maskreid-walkers


def carried_shards(named: str = WALKERS) -> str:
    """The folder `named` itself where it is there or not the carried set's; else that of this package's
    checkout, else that of the distribution. Raises UserError: none of them is there."""
    if named != WALKERS or Path(named).exists():
        return named
    if (CHECKOUT / WALKERS / MANIFEST).is_file():
        return str(CHECKOUT / WALKERS)
    if (installed := installed_walkers()) is not None:
        return str(installed)
    raise UserError(
        f"{WALKERS}: not here, and its pictures are a package of their own (12 MB, GPL-3.0-or-later): pip "
        "install 'maskreid-dist[walkers]', or name shards with --shards DIR"
    )


def installed_walkers() -> Path | None:
    """The folder of the distribution's files, None where it is not installed."""
    spec = find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return next((Path(folder) for folder in folders or () if Path(folder, MANIFEST).is_file()), None)
