"""The installed version of densescore."""

from importlib.metadata import version

__version__ = version("densescore")
