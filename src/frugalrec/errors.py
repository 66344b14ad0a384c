"""The error tree: every error a user can cause says what, the value, and the remedy.

FrugalrecError            exit code 2 unless a subclass says otherwise
├── DataError             a file, table or data set that cannot be used as given
├── ConfigError           an option or configuration value that makes no sense
├── LeakError             the audit found an error-level leak (exit code 1)
├── NotFittedError        a model was asked to score before it was fitted
├── MissingExtraError     an optional dependency is not installed
├── ModelError            a language model or adapter that cannot be found or used
├── DownloadError         a download failed or its checksum differs
└── StorageError          a run folder cannot be written or read (full disk, damaged file)
"""

from __future__ import annotations

import importlib
from types import ModuleType


class FrugalrecError(Exception):
    """Base of all errors that the command line shows as one paragraph, without a traceback."""

    exit_code = 2


class DataError(FrugalrecError):
    """A file, table or data set cannot be used as given."""


class ConfigError(FrugalrecError):
    """An option or configuration value makes no sense."""


class LeakError(FrugalrecError):
    """The audit found an error-level leak that was not allowed by name."""

    exit_code = 1


class NotFittedError(FrugalrecError):
    """A model was asked to score before it was fitted."""


class MissingExtraError(FrugalrecError):
    """An optional dependency is not installed."""


class ModelError(FrugalrecError):
    """A language model or adapter cannot be found, loaded or trusted."""


class DownloadError(FrugalrecError):
    """A download failed or its checksum differs from the recorded one."""


class StorageError(FrugalrecError):
    """A run folder cannot be written or read."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module, or explain in one line which extra brings it.

    Args:
        module: Dotted module name, for example ``"torch"``.
        extra: The extra of this package that installs it, for example ``"llm"``.

    Raises:
        MissingExtraError: If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise MissingExtraError(
            f"{module} is not installed, and this step needs it. "
            f"Install it with: pip install 'frugalrec[{extra}]'"
        ) from None
