"""Files that ask the decoder to open something else: another file, or an address.

A server's worker reads what strangers uploaded. A playlist that is named `.mp4` must not make it fetch an internal
address or read a secret into a picture. Two traps tell: a file that the kernel watches, which sees opens that no Python
hook does, and a server on the loopback. That they spring is shown with plain `av.open` on the very same files.
"""

import ctypes
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import pytest

from tests.media.videos import consume, ffmpeg, make, moving, outline
from videolavit.media import errors, iter_frames, probe
from videolavit.media import source as source_module

_IN_ACCESS, _IN_OPEN = 0x1, 0x20
_IN_NONBLOCK = os.O_NONBLOCK

PERMISSIVE = {
    "protocol_whitelist": "file,http,tcp,crypto,data,concat,subfile",
    "allowed_extensions": "ALL",
    "allowed_segment_extensions": "ALL",
    "extension_picky": "0",
    "safe": "0",
    "enable_drefs": "1",
    "use_absolute_path": "1",
}


class Traps:
    """A file and a server that notice when they are read."""

    def __init__(self, file: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "inotify_init1"):
            pytest.skip("needs inotify, to see opens that do not go through Python")
        self.file = file
        self._content = file.read_bytes()
        self._inotify = libc.inotify_init1(_IN_NONBLOCK)
        assert self._inotify >= 0
        assert libc.inotify_add_watch(self._inotify, os.fsencode(file), _IN_OPEN | _IN_ACCESS) >= 0
        self._requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/{file.name}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        traps = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                traps._requests.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(traps._content)))
                self.end_headers()
                self.wfile.write(traps._content)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def sprung(self) -> set[str]:
        """Which traps were touched since the last call."""
        touched = {"http"} if self._requests else set()
        self._requests.clear()
        try:
            while os.read(self._inotify, 1 << 16):
                touched.add("file")
        except BlockingIOError:
            pass
        return touched

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        os.close(self._inotify)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    make(folder / "good.mp4", (*moving(seconds=2, rate="24"), "-c:v", "libx264", "-preset", "veryfast"))
    return folder


@pytest.fixture(scope="module", params=["secret.ts", "secret.mp4"])
def traps(folder: Path, request: pytest.FixtureRequest) -> Iterator[Traps]:
    """The secret is itself a video: some playlists only go on to open what looks like one."""
    ffmpeg("-i", folder / "good.mp4", "-c", "copy", *_bait(request.param), folder / request.param)
    traps = Traps(folder / request.param)
    yield traps
    traps.close()


def _bait(name: str) -> tuple[str, ...]:
    return ("-movflags", "+frag_keyframe+empty_moov+default_base_moof") if name.endswith("mp4") else ()


# ---- the files ---------------------------------------------------------------------------------------------------


def _hls(target: str) -> str:
    return f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n"


def _hls_master(target: str) -> str:
    return f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1000000\n{target}\n"


def _hls_key(target: str) -> str:
    key = f'#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n'
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n{key}#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n"


def _concat(target: str) -> str:
    return f"ffconcat version 1.0\nfile '{target}'\n"


def _dash(target: str) -> str:
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S" minBufferTime="PT1S"
 profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period duration="PT2S"><AdaptationSet mimeType="video/mp4">
<Representation id="0" bandwidth="1000" codecs="avc1.42c00d" width="160" height="120"><SegmentList duration="2">
<SegmentURL media="{target}"/></SegmentList></Representation></AdaptationSet></Period></MPD>"""


PLAYLISTS: dict[str, tuple[Callable[[str], str], str]] = {
    "list.m3u8": (_hls, "hls"),
    "master.m3u8": (_hls_master, "hls"),
    "key.m3u8": (_hls_key, "hls"),
    "list.ffconcat": (_concat, "concat"),
    "list.mpd": (_dash, "dash"),
}
"""Text for a target, and the libavformat demuxer that follows it."""

SCRIPTS = {
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 50004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "subtitle.ass": "[GeneratedTokens Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
    "Dialogue: 0,0:00:00.00,0:00:02.00,Default,hello\n",
    "subtitle.srt": "1\n00:00:00,000 --> 00:00:02,000\nhello\n\n2\n00:00:02,000 --> 00:00:04,000\nworld\n",
    "subtitle.vtt": "WEBVTT\n\n00:00.000 --> 00:02.000\nhello\n",
    "subviewer.sub": "[INFORMATION]\n[TITLE]x\n[END INFORMATION]\n[SUBTITLE]\n00:00:00.00,00:00:02.00\nhello\n",
    "metadata.txt": ";FFMETADATA1\ntitle=x\n",
    "list.m3u": "#EXTM3U\nhttp://127.0.0.1/x.mp4\n",
    "list.pls": "[playlist]\nFile1=http://127.0.0.1/x.mp4\nNumberOfEntries=1\n",
    "list.asx": '<asx version="3.0"><entry><ref href="http://127.0.0.1/x.mp4"/></entry></asx>',
    "list.smil": '<smil><body><video src="http://127.0.0.1/x.mp4"/></body></smil>',
    "script.avs": 'DirectShowSource("x.mp4")\n',
    "graph.txt": "movie=x.mp4[out0]\n",
}


def _targets(traps: Traps) -> dict[str, str]:
    return {"file": f"file://{traps.file}", "path": str(traps.file), "http": traps.url}


def _open_permissively(source: str | Path, file_format: str | None = None) -> None:
    """A careless program: plain libavformat with everything allowed. Only the traps matter."""
    try:
        with av.open(str(source), format=file_format, options=dict(PERMISSIVE), timeout=10) as container:
            for _ in zip(range(3), container.demux(), strict=False):
                pass
    except (av.error.FFmpegError, ValueError):
        pass


# ---- tests -------------------------------------------------------------------------------------------------------


def test_the_traps_work(traps: Traps) -> None:
    assert traps.sprung() == set()
    traps.file.open("rb").close()
    assert traps.sprung() == {"file"}
    _open_permissively(traps.url)
    assert traps.sprung() == {"http"}
    _open_permissively(traps.file)
    assert traps.sprung() == {"file"}
    assert traps.sprung() == set()


def test_libavformat_follows_playlists(folder: Path, traps: Traps) -> None:
    """Every playlist springs a trap with plain `av.open`, so the tests below are not vacuous."""
    followed: dict[str, set[str]] = {}
    for name, (text, demuxer) in PLAYLISTS.items():
        if not av.ContainerFormat(demuxer).is_input:
            continue  # today's wheel only writes DASH
        for kind, target in _targets(traps).items():
            path = folder / f"{kind}-{name}"
            path.write_text(text(target))
            traps.sprung()
            _open_permissively(path, demuxer)
            followed.setdefault(name, set()).update(traps.sprung())
    assert {"list.m3u8", "list.ffconcat"} <= set(followed)
    assert all(followed.values()), followed
    assert followed["list.m3u8"] == followed["list.ffconcat"] == {"file", "http"}


@pytest.mark.parametrize("kind", ["file", "path", "http"])
@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_are_refused_and_not_followed(tmp_path: Path, traps: Traps, name: str, kind: str) -> None:
    text = PLAYLISTS[name][0](_targets(traps)[kind])
    traps.sprung()
    for disguise in (name, f"{name}.mp4", f"{name}.mkv", f"{name}.ts"):
        path = tmp_path / disguise
        path.write_text(text)
        _assert_refused(path)
    _assert_refused(text.encode())
    time.sleep(0.05)
    assert traps.sprung() == set()


@pytest.mark.parametrize("kind", ["file", "path", "http"])
@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_open_nothing_even_when_recognised(
    tmp_path: Path, traps: Traps, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second wall: were such a format on the allow list by mistake, nothing could be opened through it."""
    text, demuxer = PLAYLISTS[name]
    monkeypatch.setattr(source_module, "ALLOWED_FORMATS", (*source_module.ALLOWED_FORMATS, demuxer))
    path = tmp_path / name
    path.write_text(text(_targets(traps)[kind]))
    traps.sprung()
    with pytest.raises(errors.MediaError):
        consume(iter_frames(path))
    time.sleep(0.05)
    assert traps.sprung() == set()


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_and_subtitles_are_refused(tmp_path: Path, name: str) -> None:
    for disguise in (name, f"{name}.mp4", f"{name}.mkv"):
        path = tmp_path / disguise
        path.write_text(SCRIPTS[name])
        started = time.monotonic()
        _assert_refused(path)
        assert time.monotonic() - started < 1, "it waited for something"


def test_subtitle_index_does_not_open_its_neighbour(folder: Path, tmp_path: Path, traps: Traps) -> None:
    """VobSub: the `.idx` names no file, the demuxer opens the `.sub` beside it."""
    index = "# VobSub index file, v7 (do not modify this line!)\nsize: 720x576\nid: en, index: 0\n"
    path = folder / f"{traps.file.stem}-{traps.file.suffix[1:]}.idx"
    path.write_text(index + "timestamp: 00:00:00:000, filepos: 000000000\n")
    neighbour = path.with_suffix(".sub")
    neighbour.unlink(missing_ok=True)
    neighbour.hardlink_to(traps.file)
    traps.sprung()
    _open_permissively(path)
    assert traps.sprung() == {"file"}
    _assert_refused(path)
    assert traps.sprung() == set()


ADDRESSES = (
    "{url}",
    "file:{file}",
    "file://{file}",
    "concat:{file}|{file}",
    "subfile,,start,0,end,0,,:{file}",
)


@pytest.mark.parametrize("scheme", ADDRESSES)
def test_a_source_is_a_path_and_never_an_address(traps: Traps, scheme: str) -> None:
    source = scheme.format(url=traps.url, file=traps.file)
    traps.sprung()
    _open_permissively(source)
    assert traps.sprung()
    for attempt in (iter_frames, probe):
        with pytest.raises(errors.SourceMissing):
            list(attempt(source))  # type: ignore[operator]
    assert traps.sprung() == set()


def test_mp4_with_an_external_data_reference(folder: Path, tmp_path: Path, traps: Traps) -> None:
    """A QuickTime alias as the place of the samples: it is not followed, so there are none."""
    path = tmp_path / "alias.mp4"
    path.write_bytes(_with_alias((folder / "good.mp4").read_bytes(), str(traps.file)))
    traps.sprung()
    _open_permissively(path)
    assert traps.sprung() == {"file"}
    for attempt in (iter_frames, probe):
        with pytest.raises(errors.CorruptVideo):
            list(attempt(path))  # type: ignore[operator]
    assert traps.sprung() == set()


def _with_alias(mp4: bytes, target: str) -> bytes:
    """The mp4 (index last) with its data reference replaced by a Macintosh alias record with an absolute path."""
    assert mp4.index(b"mdat") < mp4.index(b"moov")
    start = mp4.index(b"dref") - 4
    (size,) = struct.unpack_from(">I", mp4, start)
    encoded = target.encode()
    path = struct.pack(">HH", 2, len(encoded)) + encoded + bytes(len(encoded) % 2)
    record = bytes(10) + bytes(28) + bytes(12) + bytes(64) + bytes(16) + struct.pack(">hh", -1, -1) + bytes(16)
    entry = b"alis" + bytes(4) + record + path + struct.pack(">HH", 0xFFFF, 0)
    dref = b"dref" + bytes(4) + struct.pack(">I", 1) + struct.pack(">I", len(entry) + 4) + entry
    grown = len(dref) + 4 - size
    data = bytearray(mp4[:start] + struct.pack(">I", len(dref) + 4) + dref + mp4[start + size :])
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        position = data.index(parent) - 4
        struct.pack_into(">I", data, position, struct.unpack_from(">I", data, position)[0] + grown)
    return bytes(data)


def test_matroska_attachments_are_left_alone(folder: Path, tmp_path: Path) -> None:
    """An attached file with a path as its name is neither written nor taken for the video."""
    secret = tmp_path / "note.txt"
    secret.write_text("attached")
    path = tmp_path / "attached.mkv"
    names = ("-metadata:s:t", "mimetype=text/plain", "-metadata:s:t", f"filename=../{tmp_path.name}/escaped.txt")
    ffmpeg("-i", folder / "good.mp4", "-attach", secret, *names, "-c", "copy", path)
    plain = tmp_path / "plain.mkv"
    ffmpeg("-i", folder / "good.mp4", "-c", "copy", plain)
    assert outline(path).keyframes_sha256 == outline(plain).keyframes_sha256
    assert not (tmp_path / "escaped.txt").exists()


def test_a_video_opens_nothing_but_itself(folder: Path, traps: Traps) -> None:
    """The traps lie beside the file and stay unsprung while it is decoded."""
    traps.sprung()
    consume(iter_frames(folder / "good.mp4"))
    probe(folder / "good.mp4")
    assert traps.sprung() == set()


def _assert_refused(source: Path | bytes) -> None:
    for attempt in (lambda: consume(iter_frames(source)), lambda: probe(source)):
        with pytest.raises((errors.ForbiddenFormat, errors.UnknownFormat)) as caught:
            attempt()
        assert len(str(caught.value)) > 8
