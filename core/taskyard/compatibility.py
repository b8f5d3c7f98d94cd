"""Does a plugin work with this Taskyard? Its distribution says so, among its dependencies: ``taskyard>=0.1,<1``."""

from __future__ import annotations

from collections.abc import Iterable

from packaging.requirements import Requirement
from packaging.specifiers import Specifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

#: Operators that a version which is too old does not satisfy.
_LOWER = (">=", ">", "~=", "==", "===")


def required(requires: Iterable[str]) -> SpecifierSet | None:
    """The versions of Taskyard that a distribution asks for, by its ``Requires-Dist`` lines (PEP 508); None if it asks for none.

    Raises:
        packaging.requirements.InvalidRequirement: a line is malformed.
    """
    found = [Requirement(line) for line in requires if canonicalize_name(line[:8]) == "taskyard"]
    # Those of an extra are for whoever asks for the extra.
    wanted = [each for each in found if canonicalize_name(each.name) == "taskyard" and (each.marker is None or each.marker.evaluate({"extra": ""}))]
    return SpecifierSet(",".join(str(each.specifier) for each in wanted if str(each.specifier))) if wanted else None


def misfit(distribution: str, requires: Iterable[str], version: str) -> str | None:
    """What to upgrade, as a sentence, if a distribution does not work with this version of Taskyard; None if it does."""
    wanted = required(requires)
    if wanted is None or wanted.contains(version, prereleases=True):
        return None
    if any(_asks_for_newer(each, version) for each in wanted):
        return f"{distribution} needs taskyard{wanted}, and this is {version}. Upgrade Taskyard: pip install --upgrade 'taskyard{wanted}'"
    return f"{distribution} is made for taskyard{wanted}, and this is {version}. Upgrade the plugin: pip install --upgrade {distribution}"


def _asks_for_newer(specifier: Specifier, version: str) -> bool:
    if specifier.operator not in _LOWER or specifier.contains(version, prereleases=True):
        return False
    return Version(specifier.version.removesuffix(".*")) >= Version(version)
