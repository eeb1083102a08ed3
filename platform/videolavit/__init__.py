"""Video-LaVIT as a platform: videos in, keyframe and motion tokens out, one language model over both."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Looks the version up when it is asked for: the child processes that import this package start faster."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("videolavit")
