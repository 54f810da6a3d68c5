"""Asserts, in a clean environment, that the named packages are those of the wheel. It builds and installs nothing.

Run with `python -I`, so that neither the working directory nor user packages can stand in for the wheel.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import sysconfig
from pathlib import Path


def import_all(package: str, site: Path) -> int:
    """Import `package` and every module below it; return how many.

    Raises:
        SystemExit: the package was found somewhere else than under `site`.
        ImportError: a module needs something that a plain install does not bring.
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
