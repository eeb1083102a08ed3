"""Steps of the image's Dockerfile."""

import re
from dataclasses import dataclass

from tests.conftest import ROOT

DOCKERFILE = ROOT / "deploy" / "Dockerfile"


@dataclass(frozen=True)
class Step:
    """An instruction: its word, and the rest of the line."""

    word: str
    rest: str


def steps() -> list[Step]:
    """All instructions, with continued lines as one."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Step(*line.split(" ", 1)) for line in joined.splitlines()]
