"""Video bytes in, keyframes and motion out; frames in, mp4 out. Knows neither Ray nor torch."""

from .clips import Clip, corpus_groups, decompose, select_eval_clips
from .draw import contact_sheet, draw_motion
from .errors import MediaError
from .motion import motion_features, motion_grid, motion_score, normalize_motion
from .reencode import DecomposedFrame, iter_frames
from .settings import BLOCK, CLIP_FRAMES, GOP_FRAMES, DecomposeSettings
from .source import Source, VideoInfo, probe
from .write import write_mp4

__all__ = [
    "BLOCK",
    "CLIP_FRAMES",
    "GOP_FRAMES",
    "Clip",
    "DecomposeSettings",
    "DecomposedFrame",
    "MediaError",
    "Source",
    "VideoInfo",
    "contact_sheet",
    "corpus_groups",
    "decompose",
    "draw_motion",
    "iter_frames",
    "motion_features",
    "motion_grid",
    "motion_score",
    "normalize_motion",
    "probe",
    "select_eval_clips",
    "write_mp4",
]
