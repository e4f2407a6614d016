"""Find the versions of installed packages, and our own, which may run from its sources without an installation."""

from importlib.metadata import PackageNotFoundError, version

NOT_INSTALLED = "not installed"


def installed_version(name: str) -> str:
    """A package's version; "not installed" where no installation says one. `name` is that of the package index."""
    try:
        return version(name)
    except PackageNotFoundError:
        return NOT_INSTALLED
