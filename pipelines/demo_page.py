"""The page of the demo: one file that needs no network."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2

from .demo_exhibits import Exhibits

TEMPLATE = "demo.html.j2"
MEDIA_TYPES = {".mp4": "video/mp4", ".png": "image/png"}


@dataclass(frozen=True)
class NextCommand:
    """Command to try after the demo.

    Args:
        words: Command line.
        purpose: Description for people.
    """

    words: str
    purpose: str


def render_demo(
    exhibits: Exhibits, facts: Mapping[str, str], codes: Mapping[str, int], commands: Sequence[NextCommand]
) -> str:
    """Renders the page; text from the data is escaped.

    Args:
        exhibits: Videos of the page.
        facts: Numbers of the run, by their names.
        codes: Number of different `visual` and `motion` codes, by which tokens are coloured.
        commands: Commands to try next.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(resources.files(__package__).joinpath(TEMPLATE).read_text())
    return template.render(exhibits=exhibits, facts=facts, codes=codes, commands=commands, data_url=_data_url)


def _data_url(file: Path) -> str:
    return f"data:{MEDIA_TYPES[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"
