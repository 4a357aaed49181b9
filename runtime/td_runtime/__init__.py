"""td-runtime: starts worker processes, keeps them alive, tells what happens."""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("td-runtime")
