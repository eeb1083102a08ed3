"""Local files that appear complete or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4


@contextlib.contextmanager
def write_beside(*targets: Path) -> Iterator[list[Path]]:
    """Yields a temporary path beside each target. Files written there replace the targets when the block ends.

    If the block raises, the temporary files are deleted and the targets stay as they are. Missing folders are created.
    """
    temporary = [target.with_name(f".{target.stem}.{uuid4().hex}{target.suffix}") for target in targets]
    try:
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        for file, target in zip(temporary, targets, strict=True):
            file.replace(target)
    finally:
        for file in temporary:
            file.unlink(missing_ok=True)
