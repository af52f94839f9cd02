"""The study file: a base recipe, rows that change some of its keys, seeds, and the claims they decide."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from maskreid_dist.config import Config, Location, Section
from maskreid_dist.errors import RecipeError
from maskreid_dist.recipe import describe, known_keys, load_recipe, read_toml
from maskreid_dist.training.facts import flat
from maskreid_dist.training.resuming import MAY_CHANGE_ON_RESUME

EXAMPLE = "launch/studies/paper_walkers.toml"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Overrides = tuple[str, ...]  # section.key=value, as --set takes them
SET_BY_THE_STUDY = ("name", "seed")
OF_MASKS = ("data.mask_damage",)  # what a row with another's network may set


class Part(Section):
    """Lists of a TOML file are tuples here."""

    model_config = ConfigDict(**Section.model_config, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _tuples_from_lists(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


class Row(Part):
    """A training that is repeated with every seed. claim: the name of the claim that it belongs to; shards:
    other ones than the base recipe's; note: how these are made. network_of: no training, but the network of
    that row, ranked with this row's masks (`data.mask_damage`, `shards`)."""

    name: Name
    claim: Name | None = None
    overrides: Overrides = Field(default=(), alias="set")
    shards: Location | None = None
    note: str = ""
    network_of: Name | None = None


class Claim(Part):
    """Row `better` is said to rank better than row `than`. source: where the paper says or suggests it."""

    name: Name
    text: Annotated[str, Field(min_length=1)]
    better: Name
    than: Name
    source: str = ""


class Study(Part):
    """base: a recipe, its path from the study file. base_row: what every row is compared with. overrides: of
    all rows, before their own."""

    name: Name
    base: Annotated[str, Field(min_length=1)]
    base_row: Name
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)]
    overrides: Overrides = Field(default=(), alias="set")
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    claims: tuple[Claim, ...] = ()

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("name each seed once")
        return seeds

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        rows, claims = [row.name for row in self.rows], [claim.name for claim in self.claims]
        for kind, names in (("row", rows), ("claim", claims)):
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"two {kind}s are called {twice[0]!r}; give each a name of its own")
        wanted = [("base_row", self.base_row)]
        for claim in self.claims:
            wanted += [(f"claim {claim.name}: {key}", getattr(claim, key)) for key in ("better", "than")]
        for where, name in wanted:
            if name not in rows:
                raise ValueError(f"{where} = {name!r} is none of the rows: {', '.join(rows)}")
        for row in self.rows:
            if row.claim is not None and row.claim not in claims:
                raise ValueError(f"row {row.name}: claim = {row.claim!r} is none of the claims")
            trained = [other.name for other in self.rows if other.network_of is None]
            if row.network_of is not None and row.network_of not in trained:
                raise ValueError(f"row {row.name}: network_of = {row.network_of!r} is no row that is trained")
        return self


@dataclass(frozen=True)
class Task:
    """One training: a row with one of the seeds. `config.name` has a digest of what is trained: another
    recipe under the same row's name begins anew."""

    row: Row
    seed: int
    recipe: Path
    overrides: Overrides
    config: Config
    source: "Task | None" = None  # whose network it is, where the row has network_of

    @property
    def name(self) -> str:
        return f"{self.row.name}-s{self.seed}"


@dataclass(frozen=True)
class LoadedStudy:
    """A study file with everything that it names, checked: `tasks` in the order of its rows, then seeds."""

    path: Path
    study: Study
    tasks: tuple[Task, ...]


def load_study(path: Path) -> LoadedStudy:
    """Raises RecipeError, one line: the study file's own, or that of the first row whose recipe is bad."""
    tree = read_toml(path, "study", EXAMPLE)
    try:
        study = Study.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe(error, _keys())}") from None
    recipe = path.parent / study.base
    tasks: dict[tuple[str, int], Task] = {}
    for of_another in (False, True):
        for row in study.rows:
            for seed in study.seeds if (row.network_of is not None) == of_another else ():
                source = tasks[row.network_of, seed] if row.network_of is not None else None
                tasks[row.name, seed] = _task(path, study, recipe, row, seed, source)
    in_order = tuple(tasks[row.name, seed] for row in study.rows for seed in study.seeds)
    return LoadedStudy(path, study, in_order)


def _task(path: Path, study: Study, recipe: Path, row: Row, seed: int, source: Task | None) -> Task:
    own = [*study.overrides, *(source.row.overrides if source else ()), *row.overrides]
    for override in own:
        if override.partition("=")[0].strip() in SET_BY_THE_STUDY:
            raise RecipeError(f"{path}: row {row.name}: {override}: name and seed are the study's to set")
    shards = row.shards or (source.row.shards if source else None)
    own += [f"data.shards={json.dumps(shards)}"] if shards is not None else []
    own += [f"seed={seed}", f'name="{row.name}-s{seed}"']
    try:
        config = load_recipe(recipe, own)
    except RecipeError as error:
        raise RecipeError(f"{path}: row {row.name}: {error}") from None
    decides = trained_by(config)
    if source is not None:
        before = trained_by(source.config)
        if others := [key for key in decides if decides[key] != before[key] and key not in OF_MASKS]:
            raise RecipeError(
                f"{path}: row {row.name}: {others[0]} is of the network, row {row.network_of}'s; "
                f"set {OF_MASKS[0]} or shards alone, or leave network_of out"
            )
        decides["network_of"] = row.network_of
    digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
    named = (*own[:-1], f'name="{row.name}-s{seed}-{digest[:8]}"')
    return Task(row, seed, recipe, named, load_recipe(recipe, named), source)


def trained_by(config: Config) -> dict[str, Any]:
    """What decides how a network comes out, by key: without where data lies, how it is read, and what is
    logged."""
    values = flat(config.model_dump(mode="json"))
    return {k: v for k, v in values.items() if k not in MAY_CHANGE_ON_RESUME and not k.startswith("run.")}


def same_training(saved: Mapping[str, Any], config: Config) -> bool:
    """Whether a saved recipe, of this version or an earlier one, trains what `config` does."""
    try:
        return trained_by(Config.model_validate(saved)) == trained_by(config)
    except ValidationError:
        return False


def _keys() -> Sequence[str]:
    """Every key of a study file, dotted."""
    keys = known_keys(Study)
    for section, model in (("rows", Row), ("claims", Claim)):
        keys += known_keys(model, f"{section}.")
    return [key.replace("overrides", "set") for key in keys]
