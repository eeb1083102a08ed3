"""Settings of how inputs are read."""

from dataclasses import dataclass
from typing import Literal

from .files import IMAGE_SUFFIXES, VIDEO_SUFFIXES

Modality = Literal["video", "image", "text"]
_MEMBERS = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES, "auto": VIDEO_SUFFIXES | IMAGE_SUFFIXES}


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """Settings of the reading of inputs. They decide what is planned, not how a sample is computed.

    Args:
        modality: Modality of the inputs; `auto` goes by names and columns. With another, every file that is no sidecar
            is tried as one of this modality.
        text_column: Caption or text column of tables; by default `text`, or else `caption`.
        image_column: Column of tables that has addresses of images, their bytes, or structs with `bytes`.
    """

    modality: Literal["auto", "video", "image", "text"] = "auto"
    text_column: str | None = None
    image_column: str = "image"

    def may_be(self, modality: Modality) -> bool:
        """True if inputs of this modality are taken."""
        return self.modality in ("auto", modality)

    def must_be(self, modality: Modality) -> bool:
        """True if every input is taken as one of this modality."""
        return self.modality == modality

    def member_suffixes(self) -> frozenset[str]:
        """Suffixes of a tar's members that are samples; none where tars are not read."""
        return _MEMBERS.get(self.modality, frozenset())
