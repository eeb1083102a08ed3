"""Libraries without their progress bars and log messages."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silences `diffusers` and `transformers` below errors while the body runs."""
    import diffusers.utils.logging
    import transformers.utils.logging

    restore = [(library, library.get_verbosity()) for library in (diffusers.utils.logging, transformers.utils.logging)]
    bars = transformers.utils.logging.is_progress_bar_enabled()
    for library, _ in restore:
        library.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in restore:
            library.set_verbosity(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
