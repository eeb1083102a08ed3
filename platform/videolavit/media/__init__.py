"""Decomposition of videos into keyframes and motion vectors, and writing of mp4 files, without Ray and torch."""

from .clips import Clip, corpus_groups, decompose, decompose_frames, select_eval_clips
from .draw import Cell, arrow_style, contact_sheet, draw_motion
from .errors import MediaError
from .motion import motion_features, motion_grid, motion_score, normalize_motion
from .probe import VideoInfo, probe
from .reencode import DecomposedFrame, iter_frames, iter_pictures
from .settings import BLOCK, CLIP_FRAMES, GOP_FRAMES, DecomposeSettings
from .source import VideoInput
from .write import Mp4Writer, write_mp4

__all__ = [
    "BLOCK",
    "CLIP_FRAMES",
    "GOP_FRAMES",
    "Cell",
    "Clip",
    "DecomposeSettings",
    "DecomposedFrame",
    "MediaError",
    "Mp4Writer",
    "VideoInfo",
    "VideoInput",
    "arrow_style",
    "contact_sheet",
    "corpus_groups",
    "decompose",
    "decompose_frames",
    "draw_motion",
    "iter_frames",
    "iter_pictures",
    "motion_features",
    "motion_grid",
    "motion_score",
    "normalize_motion",
    "probe",
    "select_eval_clips",
    "write_mp4",
]
