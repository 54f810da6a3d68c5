"""Asserts, in a clean environment, that the named packages are imported from the installed wheel.

Run it with `python -I`, so that packages in the working directory and user packages are not imported.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import sysconfig
from pathlib import Path


def import_all(package: str, site: Path) -> int:
    """Import `package` and every module below it. Return the number of modules.

    Raises:
        SystemExit: the package was not imported from `site`.
        ImportError: a dependency of a module is not installed with the wheel.
    """
    root = importlib.import_module(package)
    if root.__file__ is None or site not in Path(root.__file__).parents:
        raise SystemExit(f"{package} comes from {root.__file__}, not from the wheel in {site}")
    names = [found.name for found in pkgutil.walk_packages(root.__path__, f"{package}.", onerror=_fail)]
    for name in names:
        importlib.import_module(name)
    return 1 + len(names)


def _fail(name: str) -> None:
    raise ImportError(f"{name} could not be imported") from sys.exception()


def main(packages: list[str]) -> None:
    site = Path(sysconfig.get_path("purelib")).resolve()
    for package in packages:
        print(f"{package}: {import_all(package, site)} modules from the wheel")


if __name__ == "__main__":
    main(sys.argv[1:])
