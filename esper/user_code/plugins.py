"""Entry points by which installed packages extend esper. Packages in the working directory are ignored."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from typing import Any

from esper.errors import ConfigError
from esper.user_code.import_paths import OURS, ROOT, file_of, is_installed, is_ours

LAUNCHERS = "esper.launchers"
"""Entry-point group of launchers for runs outside of this process. The package `actors` registers "ray" in this group.
"""
PACKAGE = "esper-runtime"
IN_PROCESS = "run in one process (--in-process, or on=esper.InProcess())"


def entries(group: str) -> list[EntryPoint]:
    """Return the entry points of a group, by name. Esper's entry points come before the entry points of other installed
    packages.

    If the metadata of a package is in the working directory, the package does not count as installed. Otherwise every
    command would run code that was copied into that directory.
    """
    path = [place for place in sys.path if not _is_here(place or os.curdir)]
    found = [(made.name != PACKAGE, entry) for made in distributions(path=path) for entry in made.entry_points]
    told = {(foreign, entry.name, entry.value): entry for foreign, entry in found if entry.group == group}
    return [told[key] for key in sorted(told)]


def launcher(name: str) -> Callable[..., Any]:  # Any: a class, see `esper.flow.launching.Launcher`
    """Load the class of a launcher by its name. The folder of esper's packages is searched first.

    Raises:
        ConfigError: the launcher is not installed; esper was updated after it was installed; or a package of the user
            has the name of a package of esper.
    """
    found = next((entry for entry in entries(LAUNCHERS) if entry.name == name), None)
    if found is None:
        raise ConfigError("actors", "", f"the package is not installed; {IN_PROCESS}")
    package = found.module.partition(".")[0]
    if package in OURS and package in sys.modules and not is_ours(package):
        mend = f"a package of yours has the name of esper's own; rename it, or {IN_PROCESS}"
        raise ConfigError("actors", str(file_of(sys.modules[package]) or ""), mend)
    sys.path.insert(0, str(ROOT))
    try:
        module = import_module(found.module)
    finally:
        sys.path.remove(str(ROOT))
    if not hasattr(module, found.attr):
        mend = "esper was updated after it was installed, and no longer has this launcher; install it again"
        raise ConfigError("entry point", found.value, mend)
    made: Callable[..., Any] = getattr(module, found.attr)
    return made


def _is_here(place: str) -> bool:
    here = os.curdir
    return os.path.isdir(place) and os.path.samefile(place, here) and not is_installed(Path(place).absolute())
