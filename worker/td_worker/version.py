"""The version of the whole package: read from here by the build, too."""

from typing import Final

__all__ = ["VERSION"]

VERSION: Final = "0.1.0"
