"""Builds the documentation: the pages of `docs/`, and a page per pass from its own docstrings.

python docs/build.py [--out build/docs]
python docs/build.py --schema                writes docs/manifest.schema.json anew
"""

import argparse
import dataclasses
import inspect
import json
import shutil
import sys
from pathlib import Path

from optimize.passes.catalog import PASSES
from optimize.passes.pass_base import Pass
from optimize.recipes import recipe
from optimize.runtime.manifest_schema import manifest_schema

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")


def pass_page(item: type[Pass]) -> str:
    """The page of a pass, in Markdown."""
    module = inspect.cleandoc(sys.modules[item.__module__].__doc__ or "")
    options = inspect.cleandoc(item.__doc__ or "")
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(item)
        if field.default is not dataclasses.MISSING
    }
    shown = "\n".join(f"- `{name}`: {value!r}" for name, value in defaults.items())
    return (
        f"# {item.name}\n\nNumerics: {item.numerics}.\n\n```text\n{module}\n```\n\n"
        f"## Options\n\n```text\n{options}\n```\n\nDefaults:\n\n{shown or 'none'}\n"
    )


def recipes_page() -> str:
    """The named recipes, in Markdown."""
    parts = ["# Recipes\n"]
    for name in recipe.names():
        text = recipe.find(name).read_text("utf-8")
        parts.append(f"## {name}\n\n```yaml\n{text}```\n")
    return "\n".join(parts)


SCHEMA = ROOT / "docs" / "manifest.schema.json"


def schema_text() -> str:
    """The JSON schema of a bundle's manifest, as it is committed."""
    return json.dumps(manifest_schema(), indent=1, sort_keys=True) + "\n"


def build(out: Path) -> list[Path]:
    """Writes all pages and returns their paths."""
    (out / "passes").mkdir(parents=True, exist_ok=True)
    (out / "docs").mkdir(exist_ok=True)
    written = []
    for name in PAGES:
        written.append(Path(shutil.copy(ROOT / name, out / name)))
    for page in sorted([*(ROOT / "docs").glob("*.md"), SCHEMA]):
        written.append(Path(shutil.copy(page, out / "docs" / page.name)))
    (out / "docs" / "examples").mkdir(exist_ok=True)
    for example in sorted((ROOT / "docs" / "examples").glob("*.py")):
        written.append(Path(shutil.copy(example, out / "docs" / "examples" / example.name)))
    pictures = ROOT / "docs" / "pictures"
    shutil.copytree(pictures, out / "docs" / "pictures", dirs_exist_ok=True)
    for item in PASSES:
        path = out / "passes" / f"{item.name}.md"
        path.write_text(pass_page(item), "utf-8")
        written.append(path)
    (out / "recipes.md").write_text(recipes_page(), "utf-8")
    return [*written, out / "recipes.md"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "docs")
    parser.add_argument("--schema", action="store_true", help="write the manifest's schema only")
    given = parser.parse_args()
    if given.schema:
        SCHEMA.write_text(schema_text(), "utf-8")
        print(SCHEMA)
    else:
        for path in build(given.out):
            print(path)
