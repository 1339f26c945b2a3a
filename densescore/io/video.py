"""Videos by PyAV (FFmpeg's libraries; the extra ``video``): names of frames, frames decoded to RGB, and a writer.

Frames are named by W3C media fragments: ``clip.mp4#t=12.5`` is the frame on screen 12.5 seconds after the first.
"""

import ctypes
import heapq
import math
import mmap
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import lru_cache
from typing import IO, Any, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from densescore.errors import DensescoreError, DensescoreWarning, MissingPackageError, WriteError
from densescore.io.samples import Pixels, Samples
from densescore.io.tiff import upright

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".h264", ".hevc", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
     ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)  # fmt: skip
"""Suffixes, in lower case, of videos."""

# Demuxers in use; playlists, which would open other files and addresses, are left out.
_FORMATS = "asf,avi,flv,gif,h264,hevc,m4v,matroska,mov,mp3,mp4,mpeg,mpegts,mpegvideo,mxf,ogg,flac,wav,webm"
_NAME = re.compile(r"(.+)#t=(\d+(?:\.\d+)?)", re.DOTALL)
_JUMP = 20.0  # seconds ahead from which a search for a key frame beats decoding all frames between
_AHEAD = 32  # most frames that a decoder works ahead
_GAP = 10.0  # seconds without a frame after which a broadcast's clock was set anew; its standard allows 0.7
_BROADCAST = frozenset({"mpegts", "mpeg"})  # no header states their length, and recordings can be joined end to end
_FROM_ZERO = frozenset({"matroska,webm", "flv", "asf"})  # their lengths count from 0, not from the first frame
_RAW = frozenset({"h264", "hevc", "m4v", "mpegvideo"})  # without times
_SLACK = 1.0  # seconds by which a file may end before its header says so
_BT709, _LIMITED = 1, 1  # ITU-T H.273: color space, primaries and transfer function; brightness from 16 to 235
_HDR = {16: "PQ", 18: "HLG"}  # transfer functions by their number in ITU-T H.273
_TRANSPARENT = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # decoder → the library's, which also decodes alpha
_ORIENTATIONS = {  # signs of a display matrix's a, b, c, d (x' = a·x + c·y, y' = b·x + d·y) → EXIF's orientation
    (1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8,
}  # fmt: skip


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video by its suffix."""
    return os.path.splitext(os.fspath(path))[1].lower() in VIDEO_SUFFIXES


def split_frame_name(name: str) -> tuple[str, float | None]:
    """Video and seconds of a frame's name, ``clip.mp4#t=12.5``; any other name, and None."""
    match = _NAME.fullmatch(name)
    if match is None or not is_video(match[1]) or os.path.exists(name):
        return name, None
    return match[1], float(match[2])


def frame_names(path: str | os.PathLike[str], fps: float = 1.0) -> Iterator[str]:
    """Names of the frames on screen at 0, 1/fps, 2/fps, … seconds of a video, whatever its own frame rate.

    The last name of a file that is unreadable, or cut off, is its path, which `read_frame` refuses with the reason.
    """
    if not (fps > 0 and math.isfinite(fps)):
        raise DensescoreError(f"fps must be a positive number, got {fps}")
    path = os.fspath(path)
    length = _measure(path)
    for index in range(math.ceil(length.seconds * fps - 1e-6)):  # a name's time is rounded to microseconds
        yield f"{path}#t={f'{index / fps:.6f}'.rstrip('0').rstrip('.')}"
    if length.problem is not None:
        yield path


def read_frame(path: str, seconds: float | None) -> Pixels:
    """RGB ``[H, W, 3]`` of the frame on screen at a time; upright, over white. Thread-safe, fast in order of time.

    A video named without a time (`seconds` is None) is refused.
    """
    if seconds is None:
        problem = _measure(path).problem or f"a video; name a frame of it as `{path}#t=SECONDS`, see docs/gallery.md"
        raise DensescoreError(f"{path}: {problem}")
    try:
        stamp = os.stat(path)
    except OSError as error:
        raise DensescoreError(f"{path}: cannot be read as a video: {error.strerror}") from error
    return _reader(path, stamp.st_mtime_ns, stamp.st_size, os.getpid()).read(seconds)


class _Length(NamedTuple):
    seconds: float  # of the readable part
    problem: str | None
    joined: bool = False  # of recordings whose clocks start anew


def _measure(path: str) -> _Length:
    """Seconds from the first frame to the end of the last, by the packets; only the first frame is decoded.

    The header's length counts if the packets at the end confirm it; else the whole file is read.
    """
    with ExitStack() as stack:
        try:
            video = _Opened(path, stack)
            first = next(video.frames(), None)
            if first is None:
                return _Length(0, video.damage or "holds no frames")
            stated = video.stated()
            if stated is not None and stated > 2 and video.seek(stated - 2) and (end := video.end()) > stated - _SLACK:
                return _Length(end, video.rest(), video.joined)
            whole = _Opened(path, stack, video.start)
            end = whole.end()
            if stated is not None:
                read = max(end, _Opened(path, stack, video.start).end(sound=True))  # sound may be longer
                if read < stated - max(_SLACK, 0.02 * stated, whole.longest):
                    return _Length(end, f"is cut off: it ends after {read:.1f} of {stated:.1f} seconds", whole.joined)
            return _Length(end, whole.rest(), whole.joined)
        except MissingPackageError:
            raise
        except DensescoreError as error:
            return _Length(0, str(error).removeprefix(f"{path}: "))


class _Frame(NamedTuple):
    time: float
    image: Any  # av.VideoFrame
    missing: str | None  # why there are no frames between the one before and this one


class _Opened:
    """An open video: PyAV's container and the stream on screen; `start` is the first frame's time in the stream."""

    def __init__(self, path: str, stack: ExitStack, start: float | None = None) -> None:
        av = _import_av(path)
        self.start, self.stamped, self.joined = start, True, False
        self.damage: str | None = None
        self.longest, self._bytes = 0.0, 0  # seconds between two packets, and bytes of the file up to the last
        # Open the file
        self._errors = (av.FFmpegError, OSError, ValueError)
        try:
            self._file: IO[bytes] = stack.enter_context(open(path, "rb"))  # noqa: SIM115 (the stack closes it)
            options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
            # An open file, so that a name like an address or a protocol stays a file's name
            container = av.open(
                self._file, format=_format(self._file), options=options, metadata_errors="replace", buffer_size=1 << 18
            )
            self.container: Any = stack.enter_context(container)
            self.format: str = container.format.name
        except self._errors as error:
            empty = os.path.isfile(path) and not os.path.getsize(path)
            reason = "the file is empty" if empty else getattr(error, "strerror", None) or error
            raise DensescoreError(f"{path}: cannot be read as a video: {reason}") from error
        # Choose the stream
        streams = self.container.streams
        covers = av.stream.Disposition.attached_pic
        videos = [stream for stream in streams.video if not stream.disposition & covers]
        if not videos:
            others = ["only sound"] * bool(streams.audio) + ["a cover picture"] * bool(streams.video)
            raise DensescoreError(f"{path}: holds no video, but {' and '.join(others) or 'neither pictures nor sound'}")
        best = streams.best("video")
        self.stream: Any = best if best in videos else videos[0]
        # Choose the decoder
        self.decoder: Any = self.stream.codec_context
        if self.decoder is None:
            raise DensescoreError(f"{path}: its pictures are in a code that FFmpeg does not know")
        library = _TRANSPARENT.get(self.decoder.name)
        if self.stream.metadata.get("alpha_mode") == "1" and library in av.codecs_available:
            self.decoder = av.CodecContext.create(library, "r")  # FFmpeg's own decoder drops the transparency
        self.decoder.thread_type = "SLICE" if self.format == "avi" else "AUTO"  # frames' threads report errors late
        self.base = Fraction(self.stream.time_base or Fraction(1, 1000))
        average = None if self.format in _RAW else self.stream.average_rate
        self.step = float(1 / (average or self.stream.guessed_rate or 25))

    def frames(self) -> Iterator[_Frame]:
        """Decoded frames from the current position on."""
        last: float | None = None
        since = 0  # frames since the last error: decoders work ahead, so a gap shows some frames later
        stamps: list[int] = []  # of AVI, which stores the order of decoding: frames on screen take them sorted
        packets = self.packets()
        while True:
            try:
                packet = next(packets)
                images = self.decoder.decode(packet)
                if self.format == "avi" and packet.size:
                    heapq.heappush(stamps, packet.pts)
            except StopIteration:
                return
            except self._errors as error:
                self.damage, since = f"is damaged: {getattr(error, 'strerror', None) or error}", 0
                if isinstance(error, EOFError):
                    return
                continue
            for image in images:
                if stamps:
                    time = float(heapq.heappop(stamps) * self.base)
                elif image.pts is None:
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

    def packets(self, *others: Any) -> Iterator[Any]:
        """Packets from the current position on; where joined recordings start anew, their times continue."""
        last, shift = None, 0  # in units of `base`
        for packet in self.container.demux(self.stream, *others):
            if self.format == "avi":
                packet.pts = packet.dts
            if packet.stream is self.stream and packet.pts is not None and not packet.is_discard:
                if last is not None:
                    ahead = packet.pts + shift - last
                    # No frame is decoded before a key frame and shown after it
                    back = packet.is_keyframe and ahead <= 0
                    if back or (self.format in _BROADCAST and ahead > _GAP / self.base):
                        shift += round(self.step / self.base) - ahead
                        self.joined = True
                packet.pts += shift
                self._bytes = max(self._bytes, (packet.pos or 0) + packet.size)
                self.longest = max(
                    self.longest, float((packet.pts - (packet.pts if last is None else last)) * self.base)
                )
                last = packet.pts if last is None else max(last, packet.pts)
            yield packet

    def end(self, *, sound: bool = False) -> float:
        """End of the remaining packets (`sound`: also of the sound's), in seconds since the first frame."""
        latest = (0.0, 0.0)  # begin and end of the packet that begins last
        unstamped = 0
        try:
            for packet in self.packets(*(self.container.streams.audio if sound else ())):
                stamp = packet.dts if packet.pts is None else packet.pts
                if stamp is None:
                    unstamped += packet.size > 0
                elif not packet.is_discard:  # of an edit list
                    length = float((packet.duration or 0) * packet.time_base)
                    length = length or (self.step if packet.stream is self.stream else 0)
                    begin = float(stamp * packet.time_base) - (self.start or 0)
                    latest = max(latest, (begin, begin + length))
        except self._errors:
            pass  # the rest is missing
        # Rounded times, of the first frame, the last and its length, must not add a frame
        rounding = 2 * float(self.base) if 8 * self.base < self.step else 0
        return max(latest[1] - rounding, unstamped * self.step, self.step / 2)

    def rest(self) -> str | None:
        """Reason why the file has frames after the packets that were read, or None."""
        kind = next((kind for kind in ("mov", "flv", "asf") if self.format.startswith(kind)), None)
        if kind is None:
            return None
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            magic = data[4:12] if kind == "mov" else data[: {"flv": 4, "asf": 16}[kind]]
            joined = data.find(magic, max(self._bytes, 12)) > 0
        return "holds another recording after its own end, which cannot be read: split the file" if joined else None

    def stated(self) -> float | None:
        """End of pictures and sound by the header, in seconds since the first frame."""
        if self.container.duration is None or self.format in _BROADCAST:
            return None
        length, start = self.container.duration / 1e6, self.start or 0
        if self.format in _FROM_ZERO:
            return length - start if length > start else length
        return length + (self.container.start_time or 0) / 1e6 - start

    def seek(self, seconds: float) -> bool:
        """Go to the last key frame before a time; False if the file cannot be searched."""
        if self.format == "mpeg":  # its packets after a search have no times
            return False
        try:
            self.decoder.flush_buffers()
            self.container.seek(round((seconds + (self.start or 0)) / self.base), stream=self.stream)
        except self._errors:
            return False
        return self.stamped


def _format(file: IO[bytes]) -> str | None:
    """Name of a transport stream, which FFmpeg does not recognize below ten packets; else None."""
    head = file.read(188 * 3)
    file.seek(0)
    return "mpegts" if head[:1] == b"G" and set(head[::188]) == {0x47} and len(head) > 188 else None


class _Reader:
    """Reads frames of a video in order of time; going back opens it again."""

    _video: _Opened
    _frames: Iterator[_Frame]
    _shown: _Frame
    _next: _Frame | None

    def __init__(self, path: str) -> None:
        self._path, self._lock, self._stack, self._warned = path, threading.Lock(), ExitStack(), False
        self._length: _Length | None = None
        self._process = os.getpid()

    def __del__(self) -> None:
        if self._process == os.getpid():
            self._stack.close()
        else:  # forked: FFmpeg would wait for its threads, which only the parent has; leave all of it open
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.__dict__))

    def read(self, seconds: float) -> Pixels:
        with self._lock:
            # Go to the frame on screen
            if not hasattr(self, "_shown") or seconds < self._shown.time:
                self._open()
            if seconds > self._shown.time + _JUMP:
                self._jump(seconds)
            # Times are rounded: the first frame's and this one's to milliseconds (0.033), in names to microseconds
            reached = seconds + 0.99 * min(float(self._video.base), 1e-3) + 1e-6
            while self._next is not None and self._next.time <= reached:
                self._shown, self._next = self._next, next(self._frames, None)
            # Refuse times after the end (the last frame may last longer than a step), and damage
            if self._next is None and seconds > self._shown.time + self._video.step:
                end = self._measure().seconds
                if seconds > end:
                    raise DensescoreError(f"{self._path}: ends after {end:g} seconds, got the time {seconds:g}")
            damage = self._video.damage if self._next is None else self._next.missing
            if self._shown.image.is_corrupt:
                raise DensescoreError(f"{self._path}: is damaged: the frame at {self._shown.time:g} seconds is broken")
            late = seconds > self._shown.time + 1.5 * self._video.step
            if damage is not None and late:
                raise DensescoreError(f"{self._path}: {damage}, between {self._shown.time:g} and {seconds:g} seconds")
            return self._pixels(self._shown.image)

    def _measure(self) -> _Length:
        self._length = self._length or _measure(self._path)
        return self._length

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
        """Continue at the last key frame before a time; if the file's index is wrong, at the beginning."""
        if not self._video.stamped or self._measure().joined or not self._video.seek(seconds):
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
                f"{self._path}: high dynamic range ({_HDR[image.color_trc]}): pale colors, without tone mapping",
                DensescoreWarning,
                stacklevel=2,
            )
        alpha = 3 if any(part.is_alpha for part in image.format.components) else None
        values = image.to_ndarray(format="rgb24" if alpha is None else "rgba")
        ratio = self._video.stream.sample_aspect_ratio  # width / height of a pixel
        if ratio and ratio != 1:
            width = max(1, round(values.shape[1] * ratio))
            values = cv2.resize(values, (width, values.shape[0]), interpolation=cv2.INTER_AREA)
        return Samples("RGB", alpha=alpha).to_rgb(upright(values, self._orientation(image)), self._path)

    def _orientation(self, image: Any) -> int:
        """Orientation by the frame's display matrix, as EXIF numbers it."""
        data = next((data for data in image.side_data if data.type.name == "DISPLAYMATRIX"), None)
        if data is None:
            return 1
        matrix = np.frombuffer(bytes(data), np.int32)
        a, b, c, d = (int(value) for value in np.rint(matrix[[0, 1, 3, 4]] / np.abs(matrix[:5]).max()))
        if (a, b, c, d) not in _ORIENTATIONS:
            raise DensescoreError(f"{self._path}: is shown turned by an angle that is no multiple of 90 degrees")
        return _ORIENTATIONS[a, b, c, d]


def close_videos() -> None:
    """Close the files that `read_frame` keeps open for the next frame."""
    _reader.cache_clear()


@lru_cache(maxsize=2)
def _reader(path: str, modified: int, size: int, process: int) -> _Reader:
    """Reader of an unchanged file in this process; at most two videos stay open."""
    return _Reader(path)


AddFrame: TypeAlias = Callable[[NDArray[np.uint8]], None]
"""Function that writes the next frame, RGB ``[H, W, 3]``."""


@contextmanager
def write_video(path: str | os.PathLike[str], fps: float) -> Iterator[AddFrame]:
    """Function that writes frames, all of one size, to an MP4; memory does not grow with its length.

    An odd side repeats its last row or column, as H.264 has even sides only. The file is replaced.
    """
    av = _import_av(path)
    from av.video.reformatter import Colorspace

    if "libx264" not in av.codecs_available:
        raise MissingPackageError(f"{path}: this build of PyAV cannot write H.264; the one of PyPI can")
    rate = Fraction(fps).limit_denominator(1001)
    size: tuple[int, ...] = ()
    stream: Any = None
    try:
        with av.open(os.fspath(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:

            def add(pixels: NDArray[np.uint8]) -> None:
                nonlocal size, stream
                height, width = pixels.shape[:2]
                if stream is None:
                    size = pixels.shape
                    stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
                    stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
                    context = stream.codec_context
                    context.colorspace = context.color_primaries = context.color_trc = _BT709
                    context.color_range = _LIMITED
                if pixels.shape != size:
                    raise DensescoreError(f"{path}: expected frames of shape {size}, got {pixels.shape}")
                even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
                container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))

            yield add
            if stream is not None:
                container.mux(stream.encode())
    except av.FFmpegError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror or error}") from error


def _import_av(path: str | os.PathLike[str]) -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingPackageError(f"{path}: a video needs PyAV: pip install 'densescore[video]'") from error
    return av
