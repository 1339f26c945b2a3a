"""Frames of videos: which there are, and each one decoded to RGB, by PyAV (FFmpeg's libraries; the extra ``video``).

A frame is named as the W3C's media fragments are: ``clip.mp4#t=12.5`` is what a viewer sees 12.5 seconds after the
video's first frame. `densescore.read_image` takes such a name where it takes a path.
"""

import math
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from functools import lru_cache
from typing import IO, Any, NamedTuple

import cv2
import numpy as np

from densescore.errors import DensescoreError, DensescoreWarning, MissingPackageError
from densescore.io.samples import Pixels, Samples
from densescore.io.windows import upright

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".h264", ".hevc", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
     ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)  # fmt: skip
"""Suffixes, in lower case, of files that are taken for videos."""

_FORMATS = "asf,avi,flv,gif,h264,hevc,m4v,matroska,mov,mp3,mp4,mpeg,mpegts,mpegvideo,mxf,ogg,flac,wav,webm"
"""The demuxers in use. Playlists, which would open other files and addresses, are none of them."""
_NAME = re.compile(r"(.+)#t=(\d+(?:\.\d+)?)", re.DOTALL)
_JUMP = 20.0  # seconds ahead from which it pays to look for a key frame instead of decoding all that is between
_AHEAD = 32  # frames, at most, that a decoder is ahead of those that it gives
_SLACK = 1.0  # seconds by which a file may end before its header says so
_HDR = {16: "PQ", 18: "HLG"}  # transfer functions by their number in ITU-T H.273
_TRANSPARENT = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoder → the library's, which decodes a WebM's alpha, too
_ORIENTATIONS = {
    (1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8,
}  # fmt: skip
"""Signs of a display matrix's a, b, c, d, where x' = a·x + c·y and y' = b·x + d·y → EXIF's orientation."""


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is taken for a video, by its suffix."""
    return os.path.splitext(os.fspath(path))[1].lower() in VIDEO_SUFFIXES


def split_frame_name(name: str) -> tuple[str, float | None]:
    """A frame's video and its seconds; of any other name the name itself and None.

    Example:
        >>> split_frame_name("clip.mp4#t=12.5"), split_frame_name("cat.jpg")
        (('clip.mp4', 12.5), ('cat.jpg', None))
    """
    found = _NAME.fullmatch(name)
    if found is None or not is_video(found[1]) or os.path.exists(name):
        return name, None
    return found[1], float(found[2])


def frame_names(path: str | os.PathLike[str], fps: float = 1.0) -> Iterator[str]:
    """Names of what a viewer sees every ``1/fps`` seconds of a video.

    The times are 0, 1/fps, 2/fps, … up to the video's end, whatever its own rate, and be it constant or not. Where its
    frames are fewer, one comes again. Of a video that cannot be read the path itself is given, which `read_frame`
    refuses with the reason; so it is last of a file that is cut off, after what is there.

    Args:
        path: of the video.
        fps: frames per second.

    Raises:
        DensescoreError: `fps` is not a positive number, or PyAV is not installed.
    """
    if not (fps > 0 and math.isfinite(fps)):
        raise DensescoreError(f"fps must be a positive number, got {fps}")
    path = os.fspath(path)
    length = _measure(path)
    for index in range(math.ceil(length.seconds * fps - 1e-6)):
        yield f"{path}#t={f'{index / fps:.6f}'.rstrip('0').rstrip('.')}"
    if length.problem is not None:
        yield path


def read_frame(path: str, seconds: float | None) -> Pixels:
    """RGB ``[H, W, 3]``, uint8 or float32, of the frame that a viewer sees at a time; upright, and over white.

    Reading in order is fast: the video stays open at the last frame. Videos are safe to read from several threads.

    Args:
        path: of the video.
        seconds: since its first frame; None for a video that was named without a time, which is refused.

    Raises:
        DensescoreError: the file is no video, is cut off or damaged there, or is shorter; the message names it.
    """
    if seconds is None:
        problem = _measure(path).problem or f"a video, of which `{path}#t=SECONDS` names a frame; see docs/video.md"
        raise DensescoreError(f"{path}: {problem}")
    try:
        stamp = os.stat(path)
    except OSError as error:
        raise DensescoreError(f"{path}: cannot be read as a video: {error.strerror}") from error
    return _reader(path, stamp.st_mtime_ns, stamp.st_size).read(seconds)


class _Length(NamedTuple):
    seconds: float  # of what can be read
    problem: str | None


def _measure(path: str) -> _Length:
    """Seconds from the first frame to the end of the last, as the packets say; nothing but the first is decoded.

    The header's length is believed where the packets at the end bear it out; else the whole file is read.
    """
    with ExitStack() as stack:
        try:
            video = _Opened(path, stack)
            first = next(video.frames(), None)
            if first is None:
                return _Length(0, video.damage or "holds no frames")
            stated = video.stated()
            if stated is not None and video.seek(max(0.0, stated - 2)) and (end := video.end()) > stated - _SLACK:
                return _Length(end, None)
            end = max(_Opened(path, stack, video.start).end(), video.step)
            if stated is None:
                return _Length(end, None)
            read = max(end, _Opened(path, stack, video.start).end(sound=True))  # the sound may go on
            whole = read > stated - max(_SLACK, 0.02 * stated)
            return _Length(end, None if whole else f"is cut off: it ends after {read:.1f} of {stated:.1f} seconds")
        except MissingPackageError:
            raise
        except DensescoreError as error:
            return _Length(0, str(error).removeprefix(f"{path}: "))


class _Frame(NamedTuple):
    time: float
    image: Any  # av.VideoFrame
    missing: str | None  # why there are no frames between the one before and this one


class _Opened:
    """An open video: PyAV's container and the stream that is shown.

    Args:
        path: of the file.
        stack: closes it.
        start: the first frame's time, in the stream's own seconds; else it becomes known with the first frame.

    Raises:
        DensescoreError: the file cannot be read, or holds no video.
    """

    def __init__(self, path: str, stack: ExitStack, start: float | None = None) -> None:
        try:
            import av
        except ImportError as error:
            raise MissingPackageError(f"{path}: a video needs PyAV: pip install 'densescore[video]'") from error
        self.start, self.stamped = start, True
        self.damage: str | None = None
        self._errors = (av.FFmpegError, OSError, ValueError)
        try:
            file: IO[bytes] = stack.enter_context(open(path, "rb"))  # noqa: SIM115 (the stack closes it)
            options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
            # PyAV gets the open file, so a name that looks like an address or a protocol is still a file's name.
            container = av.open(file, options=options, metadata_errors="replace", buffer_size=1 << 18)
            self.container: Any = stack.enter_context(container)
        except self._errors as error:
            empty = os.path.isfile(path) and not os.path.getsize(path)
            reason = "the file is empty" if empty else getattr(error, "strerror", None) or error
            raise DensescoreError(f"{path}: cannot be read as a video: {reason}") from error
        streams = self.container.streams
        covers = av.stream.Disposition.attached_pic
        shown = [stream for stream in streams.video if not stream.disposition & covers]
        if not shown:
            held = ["only sound"] * bool(streams.audio) + ["a cover picture"] * bool(streams.video)
            raise DensescoreError(f"{path}: holds no video, but {' and '.join(held) or 'neither pictures nor sound'}")
        best = streams.best("video")
        self.stream: Any = best if best in shown else shown[0]
        self.decoder: Any = self.stream.codec_context
        if self.decoder is None:
            raise DensescoreError(f"{path}: its pictures are in a code that FFmpeg does not know")
        library = _TRANSPARENT.get(self.decoder.name)
        if self.stream.metadata.get("alpha_mode") == "1" and library in av.codecs_available:
            self.decoder = av.CodecContext.create(library, "r")  # FFmpeg's own decoder leaves the transparency out
        self.decoder.thread_type = "AUTO"
        self.base = Fraction(self.stream.time_base or Fraction(1, 1000))
        self.step = float(1 / (self.stream.average_rate or self.stream.guessed_rate or 25))

    def frames(self) -> Iterator[_Frame]:
        """Decoded frames, from where the file is, with seconds since the first."""
        last: float | None = None
        since = 0  # frames since the last error: decoders work ahead, so what is missing comes some frames later
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
                images = self.decoder.decode(packet)
            except StopIteration:
                return
            except self._errors as error:
                self.damage, since = f"is damaged: {getattr(error, 'strerror', None) or error}", 0
                if isinstance(error, EOFError):
                    return
                continue
            for image in images:
                if image.pts is None:
                    self.stamped = False
                    time = 0.0 if last is None else last + self.step + (self.start or 0)
                else:
                    time = float(image.pts * (image.time_base or self.base))
                if self.start is None:
                    self.start = time
                before, last, since = last, time - self.start, since + 1
                missing = self.damage if before is not None and last - before > 1.5 * self.step else None
                if missing or since > _AHEAD:
                    self.damage = None
                yield _Frame(last, image, missing)

    def end(self, *, sound: bool = False) -> float:
        """Where the packets from here on end, in seconds since the first frame; with `sound`, the sound's, too."""
        streams = [self.stream, *(self.container.streams.audio if sound else ())]
        end, unstamped = 0.0, 0
        try:
            for packet in self.container.demux(*streams):
                stamp = packet.dts if packet.pts is None else packet.pts
                if stamp is None:
                    unstamped += packet.size > 0
                elif not packet.is_discard:  # by an edit list
                    length = float((packet.duration or 0) * packet.time_base)
                    length = length or (self.step if packet.stream is self.stream else 0)
                    end = max(end, float(stamp * packet.time_base) + length - (self.start or 0))
        except self._errors:
            pass  # the rest is not there
        return max(end, unstamped * self.step)

    def stated(self) -> float | None:
        """Where the header says that pictures and sound end, in seconds since the first frame."""
        if self.container.duration is None:
            return None
        return (self.container.duration + (self.container.start_time or 0)) / 1e6 - (self.start or 0)

    def seek(self, seconds: float) -> bool:
        """Go to the last key frame before a time, if the file can do so."""
        try:
            self.decoder.flush_buffers()
            self.container.seek(round((seconds + (self.start or 0)) / self.base), stream=self.stream)
        except self._errors:
            return False
        return self.stamped


class _Reader:
    """Reads frames of a video in order of time; going back opens it again."""

    _video: _Opened
    _frames: Iterator[_Frame]
    _shown: _Frame
    _next: _Frame | None
    _seconds: float | None = None

    def __init__(self, path: str) -> None:
        self._path, self._lock, self._stack, self._warned = path, threading.Lock(), ExitStack(), False

    def __del__(self) -> None:
        self._stack.close()

    def read(self, seconds: float) -> Pixels:
        with self._lock:
            if not hasattr(self, "_shown") or seconds < self._shown.time:
                self._open()
            if seconds > self._shown.time + _JUMP:
                self._jump(seconds)
            # In milliseconds a video at 30 frames a second has times like 0.033; names are rounded, too.
            reached = seconds + min(float(self._video.base), 1e-3) / 2 + 1e-6
            while self._next is not None and self._next.time <= reached:
                self._shown, self._next = self._next, next(self._frames, None)
            if self._next is None and seconds > self._shown.time + self._video.step:  # the last frame may last longer
                self._seconds = self._seconds or _measure(self._path).seconds
                if seconds > self._seconds:
                    raise DensescoreError(
                        f"{self._path}: ends after {self._seconds:g} seconds, got the time {seconds:g}"
                    )
            damage = self._video.damage if self._next is None else self._next.missing
            if self._shown.image.is_corrupt:
                raise DensescoreError(f"{self._path}: is damaged: the frame at {self._shown.time:g} seconds is broken")
            late = seconds > self._shown.time + 1.5 * self._video.step
            if damage is not None and late:
                raise DensescoreError(f"{self._path}: {damage}, between {self._shown.time:g} and {seconds:g} seconds")
            return self._pixels(self._shown.image)

    def _open(self) -> None:
        self._stack.close()
        self._video = _Opened(self._path, self._stack)
        self._frames = self._video.frames()
        first = next(self._frames, None)
        if first is None:
            raise DensescoreError(f"{self._path}: {self._video.damage or 'holds no frames'}")
        self._shown = first
        self._next = next(self._frames, None)

    def _jump(self, seconds: float) -> None:
        """Go on at the last key frame before a time; if the file's index is wrong, from the beginning."""
        if not (self._video.stamped and self._video.seek(seconds)):
            return
        self._frames = self._video.frames()
        first = next(self._frames, None)
        if first is None or first.time > seconds:
            self._open()
        else:
            self._shown, self._next = first, next(self._frames, None)

    def _pixels(self, image: Any) -> Pixels:
        if image.color_trc in _HDR and not self._warned:
            self._warned = True
            warnings.warn(
                f"{self._path}: high dynamic range ({_HDR[image.color_trc]}): its colors come out pale, because they "
                "are not tone mapped",
                DensescoreWarning,
                stacklevel=2,
            )
        alpha = 3 if any(part.is_alpha for part in image.format.components) else None
        values = image.to_ndarray(format="rgb24" if alpha is None else "rgba")
        ratio = self._video.stream.sample_aspect_ratio  # of a pixel's width to its height
        if ratio and ratio != 1:
            width = max(1, round(values.shape[1] * ratio))
            values = cv2.resize(values, (width, values.shape[0]), interpolation=cv2.INTER_AREA)
        return Samples("RGB", alpha=alpha).to_rgb(upright(values, self._orientation(image)), self._path)

    def _orientation(self, image: Any) -> int:
        """How the frame is to be turned and mirrored, as EXIF counts it."""
        found = next((data for data in image.side_data if data.type.name == "DISPLAYMATRIX"), None)
        if found is None:
            return 1
        matrix = np.frombuffer(bytes(found), np.int32)
        a, b, c, d = (int(value) for value in np.rint(matrix[[0, 1, 3, 4]] / np.abs(matrix[:5]).max()))
        if (a, b, c, d) not in _ORIENTATIONS:
            raise DensescoreError(f"{self._path}: is shown turned by an angle that is no multiple of 90 degrees")
        return _ORIENTATIONS[a, b, c, d]


@lru_cache(maxsize=2)
def _reader(path: str, modified: int, size: int) -> _Reader:
    """The reader of a file that has not changed; two videos at most stay open."""
    return _Reader(path)
