"""A recipe: passes in order with their options, a quality budget, a target, calibration inputs.

    passes:
      - cache_regions:
          keep_ratio: 0.5
      - fuse_solver:
          solver: dpm_solver_pp
          steps: 10
          optional: true        # recorded, not an error, when it does not apply or does not pay
    budget:
      psnr: 25
    target: onnx
    parallel:
      sequence: 2               # two processes share the tokens; start with torchrun

A recipe has no logic. Everything wrong with it is listed at once.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from optimize.ir.errors import RecipeError
from optimize.ir.exporting import Target
from optimize.ir.record import Record
from optimize.ir.row_shard import Exchange
from optimize.passes.calibration import Calibration
from optimize.passes.catalog import passes_by_name
from optimize.passes.pass_base import Pass
from optimize.passes.pipeline import Entry
from optimize.passes.shard_sequence import MAX_PROCESSES, ShardSequence
from optimize.recipes.entries import entry_data, read_entries
from optimize.recipes.lock import Lock
from optimize.recipes.options import build, nearest, plain
from optimize.recipes.strict_yaml import MAX_BYTES, REFUSED, Node, decode, from_python, parse

LIBRARY = Path(__file__).parent / "library"
KEYS = ("passes", "budget", "target", "calibration", "parallel", "lock")

APART = {
    "shard_sequence": "`sequence` makes one, leave it out",
    "cache_regions": "the two do not go together, use one of them",
}
"""Pass → why it cannot stand beside `parallel`."""


@dataclass(frozen=True)
class Budget:
    """Limits on the difference to the unrewritten program, checked after the last pass.

    Args:
        psnr: smallest peak signal-to-noise ratio of the result in dB; the peak is the reference's
            value range.
        relative_error: largest ratio of the norms of difference and reference.
        token_match: smallest share of equal tokens in generated answers, in [0, 1]; of programs
            that return whole numbers.
    """

    psnr: float | None = None
    relative_error: float | None = None
    token_match: float | None = None

    def __post_init__(self) -> None:
        for name in ("psnr", "relative_error"):
            limit = getattr(self, name)
            if limit is not None and not 0 <= limit < float("inf"):
                raise ValueError(f"{name}: found {limit}, expected a finite number >= 0")
        if self.token_match is not None and not 0 <= self.token_match <= 1:
            raise ValueError(f"token_match: found {self.token_match}, expected a share in [0, 1]")

    @property
    def empty(self) -> bool:
        return self == Budget()

    def limits(self) -> dict[str, float]:
        """Metric → limit, of those that are limited."""
        given = dataclasses.asdict(self).items()
        return {name: limit for name, limit in given if limit is not None}


@dataclass(frozen=True)
class Parallel:
    """How many processes share the work.

    Args:
        sequence: processes that share the tokens, in [1, 1024]; `shard_sequence` does it.
        exchange: its option of this name.
    """

    sequence: int = 1
    exchange: Exchange = "heads"

    def __post_init__(self) -> None:
        if not 1 <= self.sequence <= MAX_PROCESSES:
            raise ValueError(
                f"sequence: found {self.sequence}, expected a number in [1, {MAX_PROCESSES}]"
            )


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; make one with `Recipe.load`.

    `lock` binds it to the model that it was made for; `optimize.api.apply_recipe` compares.
    """

    passes: tuple[Entry, ...]
    budget: Budget = field(default_factory=Budget)
    target: Target = "onnx"
    calibration: Calibration = field(default_factory=Calibration)
    name: str = "recipe"
    parallel: Parallel = field(default_factory=Parallel)
    lock: Lock | None = None

    @classmethod
    def load(
        cls,
        source: "str | os.PathLike[str] | Mapping[str, Any] | Recipe",
        *,
        passes: Mapping[str, type[Pass]] | None = None,
    ) -> "Recipe":
        """Loads a recipe.

        Args:
            source: a name of `recipes/library`, a path of a YAML file (anything with a suffix or a
                folder in it), a mapping, or a recipe.
            passes: name → class; the catalogue's by default.
        Raises:
            RecipeError: listing every problem with its place.
        """
        if isinstance(source, Recipe):
            return source
        problems: list[str] = []
        if isinstance(source, Mapping):
            name = "recipe"
            root: Node | None = from_python(source, name, problems)
        elif isinstance(source, (str, os.PathLike)):
            path = find(source)
            name = path.stem
            root = parse(decode(_read(path), path.name, problems), path.name, problems)
        else:
            raise RecipeError(
                f"recipe: found {type(source).__name__}, expected a name ({', '.join(names())}), "
                "a path, a mapping or a Recipe"
            )
        known = passes_by_name() if passes is None else passes
        recipe = None
        if root is not None:
            recipe = _checked(root, name, known, problems)
        elif not problems:
            problems.append(f"{name}: found an empty recipe, expected at least `passes:`")
        if problems or recipe is None:
            raise RecipeError(_listed(name, problems))
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data that `Recipe.load` reads back."""
        data: dict[str, Any] = {"passes": [entry_data(entry) for entry in self.passes]}
        if not self.budget.empty:
            data["budget"] = self.budget.limits()
        data["target"] = self.target
        if self.calibration != Calibration():
            data["calibration"] = dataclasses.asdict(self.calibration)
        if self.parallel != Parallel():
            data["parallel"] = dataclasses.asdict(self.parallel)
        if self.lock is not None:
            data["lock"] = self.lock.to_dict()
        return data

    def locked(self, history: Sequence[Record], lock: Lock | None = None) -> "Recipe":
        """What was done: the passes that applied, with the options that they found by trying.

        A run of it searches for nothing, leaves out what this run left out, and nothing else:
        what applied is no longer optional.

        Args:
            history: of a program after this recipe; its last records are those of the passes.
            lock: what the result is bound to.
        Raises:
            RecipeError: the history is not this recipe's.
        """
        # The pass that `parallel` asks for is not in the list.
        own = [
            record
            for record in history
            if self.parallel.sequence == 1 or record.name != ShardSequence.name
        ]
        records = own[len(own) - len(self.passes) :]
        found, expected = ([item.name for item in items] for items in (records, self._items))
        if found != expected:
            raise RecipeError(
                f"recipe {self.name}: found a program after {', '.join(found) or 'no pass'}, "
                f"expected one after {', '.join(expected)}; lock the recipe that made it"
            )
        entries = tuple(
            Entry(type(entry.item)(**record.options))
            for entry, record in zip(self.passes, records, strict=True)
            if record.declined is None
        )
        name = f"{self.name.removesuffix('.lock')}.lock"
        return replace(self, passes=entries, name=name, lock=lock)

    @property
    def _items(self) -> list[Pass]:
        return [entry.item for entry in self.passes]

    def to_yaml(self) -> str:
        """The recipe as YAML that `Recipe.load` reads back."""
        return yaml.safe_dump(_without_tuples(self.to_dict()), sort_keys=False)


def names() -> list[str]:
    """The named recipes that ship with the library."""
    return sorted(path.stem for path in LIBRARY.glob("*.yaml"))


def find(source: str | os.PathLike[str]) -> Path:
    """The file of a named recipe or of a path."""
    text = os.fspath(source)
    path = Path(text)
    if not path.suffix and len(path.parts) == 1 and not path.exists():
        if text in names():
            return LIBRARY / f"{text}.yaml"
        raise RecipeError(f"unknown recipe {text!r}; {nearest(text, names(), 'recipes')}")
    if not path.is_file():
        found = "a folder or special file" if path.exists() else "nothing there"
        raise RecipeError(
            f"recipe {text}: found {found}, expected a YAML file; "
            f"named recipes: {', '.join(names())}"
        )
    return path


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"recipe {path}: cannot be read: {error.strerror}") from error


def _listed(name: str, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"recipe {name}: {problems[0]}"
    return f"recipe {name}: found {len(problems)} problems\n" + "\n".join(
        f"  {problem}" for problem in problems
    )


def _checked(
    root: Node,
    name: str,
    known: Mapping[str, type[Pass]],
    problems: list[str],
) -> Recipe | None:
    if not isinstance(root.value, dict):
        if root.value is not REFUSED:
            problems.append(
                f"{root.where}: found {str(plain(root))[:60]!r}, expected a mapping with `passes`"
            )
        return None
    given: dict[str, Node] = root.value
    problems += [
        f"{node.key_where or node.where}: unknown key {key!r}; {nearest(key, KEYS, 'keys')}"
        for key, node in given.items()
        if key not in KEYS
    ]
    absent = Node(None, root.where)
    entries = read_entries(given.get("passes"), root.where, known, problems)
    budget = build(Budget, given.get("budget", absent), "budget", problems)
    calibration = build(Calibration, given.get("calibration", absent), "calibration", problems)
    parallel = build(Parallel, given.get("parallel", absent), "parallel", problems)
    if parallel is not None and parallel.sequence > 1:
        problems += [
            f"{given['parallel'].where}: parallel: found the pass {name} as well; {reason}"
            for name, reason in APART.items()
            if any(entry.item.name == name for entry in entries)
        ]
    target = "onnx"
    if "target" in given and given["target"].value is not REFUSED:
        node = given["target"]
        target = node.value
        if target not in get_args(Target):
            shown = str(plain(node))
            problems.append(
                f"{node.where}: unknown target {shown!r}; "
                + nearest(shown, get_args(Target), "targets")
            )
    lock = build(Lock, given["lock"], "lock", problems) if "lock" in given else None
    if problems:
        return None
    return Recipe(tuple(entries), budget, target, calibration, name, parallel, lock)  # type: ignore[arg-type]


def _without_tuples(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_tuples(inner) for key, inner in data.items()}
    if isinstance(data, (list, tuple)):
        return [_without_tuples(inner) for inner in data]
    return data
