"""The command line: every command of `relay`."""

import sys


def _import_structlog_without_rich() -> None:
    """structlog loads rich, 3 MiB, for tracebacks that relay does not want: they would show local
    variables. Only here, since the process of a command is ours."""
    if "structlog" in sys.modules or "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # what makes its import fail
    try:
        import structlog  # noqa: F401 (for its effect: it is loaded)
    finally:
        del sys.modules["rich"]


_import_structlog_without_rich()
