"""Maps the four folders beside `optimize/` into the package; everything else: pyproject.toml.

The links inside `optimize/` do the same for a checkout. A build does not depend on them: archives
and file systems that lose links still make a whole wheel.
"""

from setuptools import find_namespace_packages, setup

FOLDERS = ("runtime", "kernels", "passes", "recipes")
DATA = "py.typed *.yaml *.yml *.safetensors *.json *.md *.j2 *.css *.html *.js *.npz *.txt".split()

package_dir = {f"optimize.{folder}": folder for folder in FOLDERS}
packages = find_namespace_packages(
    include=["optimize", "optimize.*"],
    exclude=[f"optimize.{folder}{rest}" for folder in FOLDERS for rest in ("", ".*")],
)
for folder in FOLDERS:
    packages.append(f"optimize.{folder}")
    packages += [f"optimize.{folder}.{inner}" for inner in find_namespace_packages(folder)]

setup(
    packages=[name for name in packages if "__pycache__" not in name],
    package_dir=package_dir,
    package_data={"": DATA},
)
