"""Rotation of frames by their display matrix, with the filters that the `ffmpeg` command inserts."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame

_UNNAMED_TYPES = sorted(set(range(64)) - {kind.value for kind in SideDataType})
"""Numbers of AVFrameSideDataType that PyAV's table lacks, with room for some that are to come."""

_UNIT = 1 << 16
"""One, in a display matrix: 3 x 3 numbers in 16.16 fixed point."""


def upright_filters(picture: VideoFrame) -> list[tuple[str, str | None]]:
    """Returns (filter, arguments) pairs that rotate a frame by its display matrix; empty without one."""
    stored = _side_data(picture).get(SideDataType.DISPLAYMATRIX)
    if stored is None:
        return []
    matrix = [int(v) for v in np.frombuffer(bytes(stored), np.int32)]
    theta = _clockwise_degrees(matrix)
    if abs(theta - 90) < 1:
        return [("transpose", "cclock_flip" if matrix[3] > 0 else "clock")]
    if abs(theta - 180) < 1:
        flips: list[tuple[str, str | None]] = []
        if matrix[0] < 0:
            flips.append(("hflip", None))
        if matrix[4] < 0:
            flips.append(("vflip", None))
        return flips
    if abs(theta - 270) < 1:
        return [("transpose", "clock_flip" if matrix[3] < 0 else "cclock")]
    if abs(theta) > 1:
        return [("rotate", f"{theta:f}*PI/180")]
    return [("vflip", None)] if matrix[4] < 0 else []


def _side_data(picture: VideoFrame) -> Any:
    """Returns the side data of a frame by type.

    PyAV lists none of it where one type is missing from its table, such as that of Exif or of spatial video; these are
    removed first.
    """
    try:
        return picture.side_data
    except ValueError:
        graph = Graph()
        nodes = [
            graph.add_buffer(
                template=None, width=picture.width, height=picture.height, format=picture.format, time_base=Fraction(1)
            )
        ]
        nodes += [graph.add("sidedata", f"mode=delete:type={number}") for number in _UNNAMED_TYPES]
        graph.link_nodes(*nodes, graph.add("buffersink")).configure()
        graph.vpush(picture)
        return graph.vpull().side_data


def _clockwise_degrees(matrix: list[int]) -> float:
    """Returns the rotation of a display matrix, from 0 to 360 degrees, rounded to whole degrees as the command does."""
    a, b, c, d = (matrix[i] / _UNIT for i in (0, 1, 3, 4))
    scale_x, scale_y = math.hypot(a, c), math.hypot(b, d)
    if scale_x == 0 or scale_y == 0:
        return 0.0
    counterclockwise = -math.degrees(math.atan2(b / scale_y, a / scale_x))
    theta = -float(round(counterclockwise))
    return theta - 360 * math.floor(theta / 360 + 0.9 / 360)
