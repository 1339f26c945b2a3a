"""Frames of videos: their times, and the pixels on screen."""

import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")

from densescore import DensescoreError, DenseScorer, read_image, score_many
from densescore.io.video import frame_names, split_frame_name, write_video
from tests.io.clips import gray, number, numbered, write_clip, write_sound

CORNERS = np.zeros((48, 64, 3), np.uint8)
CORNERS[:24, :32], CORNERS[:24, 32:], CORNERS[24:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
NOISE = [np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8) for index in range(50)]


def times(path: Path, fps: float = 1.0) -> list[float | None]:
    return [split_frame_name(name)[1] for name in frame_names(path, fps)]


def frame(path: Path, seconds: float) -> int:
    return number(read_image(f"{path}#t={seconds}"))


CONTAINERS = (
    "mp4 libx264", "mp4 libx265", "mov mpeg4", "MKV libx264", "webm libvpx-vp9", "avi mpeg4", "mpg mpeg2video",
    "wmv wmv2", "flv libx264", "ts libx264", "h264 libx264",
)  # fmt: skip  # .ts begins at 1.4 seconds; .h264 has no times and no index


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container_gives_the_frame_on_screen_at_a_time(tmp_path: Path, kind: str) -> None:
    suffix, codec = kind.split()
    path = write_clip(tmp_path / f"clip.{suffix}", numbered(100), codec=codec)  # four seconds
    assert times(path) == [0, 1, 2, 3]
    for seconds in (0.0, 1.0, 2.04, 3.96, 1.039, 0.5):  # on and back
        assert frame(path, seconds) == int(seconds * 25 + 1e-6)
    assert [frame(path, float(seconds or 0)) for seconds in times(path, 25)] == list(range(100))
    assert times(path, 0.3) == pytest.approx([0, 1 / 0.3], abs=1e-6)


# Container and codec → what becomes of two files that are joined: frames of both, or an error after the first's
JOINED = {
    "mp4 libx264": False, "mov mpeg4": False, "flv libx264": False, "wmv wmv2": False, "mkv libx264": True,
    "webm libvpx-vp9": True, "avi libx264": True, "avi mpeg4": True, "mpg mpeg2video": True, "vob mpeg2video": True,
    "ts libx264": True, "ts mpeg2video": True, "m2ts libx264": True, "h264 libx264": True,
}  # fmt: skip
OFFSETS = [kind for kind in JOINED if kind.split()[0] not in ("avi", "h264")]  # an AVI holds the first frame till then
RATES: tuple[int | Fraction, ...] = (25, Fraction(30000, 1001), 3)
B_FRAMES = {"bf": "3", "g": "12"}


def assert_numbered(path: Path, count: int, rate: int | Fraction) -> None:
    """All frames by their names, in order, and some of them by their times, on and back."""
    assert [number(read_image(name)) for name in frame_names(path, float(rate))] == [*range(count)]
    for index in (count - 1, count // 2, 0, count - 1):
        assert frame(path, round(float(index / Fraction(rate)), 6)) == index


@pytest.mark.parametrize("kind", JOINED)
@pytest.mark.parametrize("count", [1, 2, 30])
def test_every_container_gives_every_frame_once(tmp_path: Path, kind: str, count: int) -> None:
    suffix, codec = kind.split()
    for index, rate in enumerate(RATES if codec != "mpeg2video" else RATES[:2]):
        path = write_clip(tmp_path / f"{index}.{suffix}", numbered(count), codec=codec, rate=rate)
        assert_numbered(path, count, rate)


@pytest.mark.parametrize("kind", [kind for kind in JOINED if not kind.endswith(("wmv2", "vp9"))])
def test_frames_that_are_stored_in_another_order_than_shown(tmp_path: Path, kind: str) -> None:
    suffix, codec = kind.split()
    path = write_clip(tmp_path / f"b.{suffix}", numbered(60), codec=codec, options=B_FRAMES)
    assert_numbered(path, 60, 25)


@pytest.mark.parametrize("kind", OFFSETS)
@pytest.mark.parametrize("count", [1, 30])
def test_the_first_frame_is_at_zero_wherever_the_file_counts_from(tmp_path: Path, kind: str, count: int) -> None:
    suffix, codec = kind.split()
    for rate in RATES[:2]:
        path = write_clip(tmp_path / f"{rate.numerator}.{suffix}", numbered(count), codec=codec, rate=rate, offset=10.3)
        assert_numbered(path, count, rate)


@pytest.mark.parametrize("kind", JOINED)
@pytest.mark.parametrize("count", [1, 5, 500])
def test_joined_recordings_are_read_to_the_end_or_refused_there(tmp_path: Path, kind: str, count: int) -> None:
    suffix, codec = kind.split()
    numbers = numbered(2 * count)
    parts = [write_clip(tmp_path / f"{i}.{suffix}", numbers[i : i + count], codec=codec) for i in (0, count)]
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    fps = 25 if count < 500 else 1
    *rest, last = frame_names(path, fps)
    if JOINED[kind]:
        wanted = list(range(0, 2 * count, 25 // fps))
        late = suffix == "vob"  # FFmpeg finds times for each pack of frames only, and is one frame late for some
        assert [number(read_image(name)) for name in (*rest, last)] == pytest.approx(wanted, abs=late)
        assert frame(path, 0) == 0
        assert frame(path, (2 * count - 1) / 25) == 2 * count - 1  # beyond a jump
    else:
        assert [number(read_image(name)) for name in rest] == list(range(0, count, 25 // fps))
        with pytest.raises(DensescoreError, match=r"joined\.\w+: holds another recording after its own end"):
            read_image(last)


@pytest.mark.parametrize("kind", ["ts libx264", "ts mpeg2video", "mpg mpeg2video", "m2ts libx264"])
@pytest.mark.parametrize("jump", ["wraps around", "is set anew"])
def test_the_clock_of_a_broadcast(tmp_path: Path, kind: str, jump: str) -> None:
    suffix, codec = kind.split()
    if jump == "wraps around":  # a clock of 33 bits at 90 kHz, after 26.5 hours
        path = write_clip(tmp_path / f"wrap.{suffix}", numbered(700), codec=codec, offset=2**33 / 90000 - 4)
    else:
        halves = [
            write_clip(tmp_path / f"{offset}.{suffix}", frames, codec=codec, offset=offset)
            for offset, frames in ((0, numbered(350)), (5000, numbered(700)[350:]))
        ]
        path = tmp_path / f"joined.{suffix}"
        path.write_bytes(b"".join(half.read_bytes() for half in halves))
    assert_numbered(path, 700, 25)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv", "clip.flv", "clip.ts", "clip.webm"])
@pytest.mark.parametrize("start", [0, 10_000])
def test_the_last_frame_of_a_variable_rate_ends_the_video(tmp_path: Path, name: str, start: int) -> None:
    codec = "libvpx-vp9" if name == "clip.webm" else "libx264"
    stamps = [start + moment for moment in (0, 120, 1000, 2480, 2560)]
    path = write_clip(tmp_path / name, numbered(5), codec=codec, milliseconds=stamps)
    assert [number(read_image(each)) for each in frame_names(path, 2)] == [0, 1, 2, 2, 2, 3]


def test_times_are_those_of_the_clock_where_the_rate_is_not_constant(tmp_path: Path) -> None:
    for name in ("clip.mp4", "clip.mkv"):
        path = write_clip(tmp_path / name, numbered(5), milliseconds=[0, 120, 1000, 5000, 5040])
        assert times(path) == [0, 1, 2, 3, 4, 5]
        numbers = [frame(path, seconds) for seconds in (0, 0.11, 0.12, 0.99, 1, 4.9, 5, 5.04)]
        assert numbers == [0, 0, 1, 1, 2, 2, 3, 4]


def test_a_long_way_ahead_is_found_by_the_index(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "long.mp4", numbered(1000), rate=10)
    for seconds in (0.0, 60.0, 95.5, 30.0, 99.9):
        assert frame(path, seconds) == round(seconds * 10)


TOPS = {  # display matrix → colors at the left and the right of the top; the sixth is a phone held upright
    (1, 0, 0, 1): ("red", "green"), (-1, 0, 0, 1): ("green", "red"), (-1, 0, 0, -1): ("black", "blue"),
    (1, 0, 0, -1): ("blue", "black"), (0, 1, 1, 0): ("red", "blue"), (0, 1, -1, 0): ("blue", "red"),
    (0, -1, -1, 0): ("black", "green"), (0, -1, 1, 0): ("green", "black"),
}  # fmt: skip


@pytest.mark.parametrize(("matrix", "top"), TOPS.items())
def test_frames_are_turned_upright(tmp_path: Path, matrix: tuple[int, ...], top: tuple[str, str]) -> None:
    pixels = read_image(f"{write_clip(tmp_path / 'turned.mp4', [CORNERS] * 2, matrix=matrix)}#t=0")
    names = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
    assert pixels.shape == ((48, 64, 3) if matrix[0] else (64, 48, 3))
    np.testing.assert_allclose(pixels[5, [5, -5]], [names[name] for name in top], atol=6)


@pytest.mark.parametrize("space", [1, 5, 2])
@pytest.mark.parametrize("color_range", [1, 2])
def test_colors_follow_the_streams_codes(tmp_path: Path, space: int, color_range: int) -> None:
    colors = [(200, 30, 40), (30, 180, 60), (40, 50, 210), (128, 128, 128), (240, 240, 20)]
    bars = np.repeat(np.array(colors, np.uint8)[None], 64, 0).repeat(32, 1)  # [64, 160, 3]
    codes = {"space": space, "color_range": color_range}
    path = write_clip(tmp_path / "bars.mp4", [bars] * 2, options={"crf": "5"}, **codes)  # type: ignore[arg-type]
    np.testing.assert_allclose(read_image(f"{path}#t=0")[32, 16::32], colors, atol=4)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("a.mov", "qtrle", "argb"), ("a.mov", "prores_ks", "yuva444p10le"), ("a.webm", "libvpx-vp9", "yuva420p")],
)
def test_transparency_is_laid_over_white(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    half = np.zeros((48, 64, 4), np.uint8)
    half[:, :32] = (200, 0, 0, 255)
    pixels = read_image(f"{write_clip(tmp_path / name, [half] * 3, codec=codec, pix_fmt=pix_fmt)}#t=0.04")
    np.testing.assert_allclose(pixels[20, [5, -5]], [(200, 0, 0), (255, 255, 255)], atol=4)


def test_sizes_that_are_odd_or_of_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "wide.mp4", [CORNERS] * 2, pixel_ratio=Fraction(16, 11))
    assert read_image(f"{path}#t=0").shape == (48, 93, 3)
    path = write_clip(tmp_path / "odd.mkv", gray([60] * 2, 47, 63), codec="ffv1", pix_fmt="bgr0")
    assert read_image(f"{path}#t=0").shape == (47, 63, 3)


def test_high_dynamic_range_warns_once(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "phone.mp4", gray([60] * 2), transfer=18)
    with pytest.warns(UserWarning, match=r"phone\.mp4: high dynamic range \(HLG\)"):
        read_image(f"{path}#t=0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(f"{path}#t=0.04")


def cut(path: Path, share: float, *, rest: bool = False) -> Path:
    """Cut a file off after a share of its bytes, or (`rest`) blank the fifth that follows."""
    data = path.read_bytes()
    at, end = int(len(data) * share), int(len(data) * (share + 0.2))
    path.write_bytes(data[:at] + (bytes(end - at) + data[end:] if rest else b""))
    return path


def other_files(path: Path) -> None:
    """A list that FFmpeg would follow to another file."""
    write_clip(path.with_name("secret.mp4"), gray([60] * 5))
    path.write_text("ffconcat version 1.0\nfile secret.mp4\n")


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("sound.mp4", write_sound, "holds no video, but only sound"),
        ("cover.mp4", lambda path: write_sound(path, cover=CORNERS), "but only sound and a cover picture"),
        ("empty.mp4", Path.touch, "the file is empty"),
        ("text.mkv", lambda path: path.write_text("no video at all\n" * 99), "cannot be read as a video: Invalid data"),
        ("list.mp4", lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"), "Invalid data"),
        ("pieces.mp4", other_files, "cannot be read as a video"),
        ("gone.mp4", lambda path: path, "No such file"),
        ("folder.mp4", lambda path: path.mkdir(), "cannot be read as a video: Is a directory"),
        ("headless.mp4", lambda path: cut(write_clip(path, NOISE), 0.6), "Invalid data"),  # the index is last
    ],
)
def test_a_file_without_video_is_named(tmp_path: Path, name: str, make: Callable[[Path], object], message: str) -> None:
    path = tmp_path / name
    make(path)
    assert times(path) == [None]
    for asked in (str(path), f"{path}#t=0"):
        with pytest.raises(DensescoreError, match=message) as caught:
            read_image(asked)
        assert str(path) in str(caught.value)


def test_a_video_that_is_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    whole = tmp_path / "cut.mp4"
    with write_video(whole, fps=10) as add:  # the index is first
        for pixels in NOISE:
            add(pixels)
    assert times(whole) == [0, 1, 2, 3, 4]
    path = cut(whole, 0.6)
    assert times(path) == [0, 1, 2, None]
    assert read_image(f"{path}#t=2").std() > 10
    with pytest.raises(DensescoreError, match=r"cut\.mp4: is cut off: it ends after [23]\.\d of 5\.0 seconds"):
        read_image(path)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_a_damaged_video_gives_errors_and_no_old_frames(tmp_path: Path, toy_scorer: DenseScorer, codec: str) -> None:
    path = cut(write_clip(tmp_path / "scratched.mp4", NOISE, codec=codec), 0.4, rest=True)
    errors = {item.source: item.error for item in score_many(frame_names(path, 25), toy_scorer) if item.error}
    assert all("scratched.mp4: is damaged" in error for error in errors.values())
    bad = [split_frame_name(str(name))[1] or 0 for name in errors]
    assert len(bad) >= 5
    assert min(bad) > 0.4


def test_names_like_addresses_and_frames_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a.mp4", "b.mp4#t=3.mp4", "caf\udce9.mp4"):
        write_clip(tmp_path / "made.mp4", gray([60] * 2)).rename(name)
        assert read_image(f"{name}#t=0").mean() == pytest.approx(60, abs=2)
    (tmp_path / "made.mp4#t=5").write_bytes(b"no picture")  # a file of that very name
    assert split_frame_name("clip.mp4#t=12.5") == ("clip.mp4", 12.5)
    assert split_frame_name("cat.jpg") == ("cat.jpg", None)
    assert split_frame_name("made.mp4#t=5") == ("made.mp4#t=5", None)


def test_bad_times_are_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(3), milliseconds=[0, 40, 3000])
    assert frame(path, 2.9) == 1
    with pytest.raises(DensescoreError, match=r"clip\.mkv: ends after 3\.\d+ seconds, got the time 9"):
        frame(path, 9)
    with pytest.raises(DensescoreError, match=r"clip\.mkv: a video; name a frame of it as `.*clip\.mkv#t=SECONDS`"):
        read_image(path)
    for fps in (0, -1, float("nan"), float("inf")):
        with pytest.raises(DensescoreError, match="fps must be a positive number"):
            list(frame_names(path, fps))
    slanted = write_clip(tmp_path / "slanted.mp4", [CORNERS] * 2, matrix=(1, 1, -1, 1))
    with pytest.raises(DensescoreError, match=r"slanted\.mp4: is shown turned by an angle that is no multiple of 90"):
        read_image(f"{slanted}#t=0")


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", numbered(9)[3:])
    assert frame(path, 0) == 3
    write_clip(tmp_path / "clip.mp4", numbered(9)[6:])
    assert frame(path, 0) == 6


def test_a_written_video_is_read(tmp_path: Path) -> None:
    path = tmp_path / "written.mp4"
    red = np.full((47, 63, 3), (200, 30, 40), np.uint8)
    with write_video(path, fps=29.97) as add:
        for _ in range(30):
            add(red)
    pixels = read_image(f"{path}#t=0.5")
    assert pixels.shape == (48, 64, 3)  # H.264 has even sides
    np.testing.assert_allclose(pixels, np.broadcast_to((200, 30, 40), pixels.shape), atol=4)
    assert len(times(path, 29.97)) == 30
    with pytest.raises(DensescoreError, match="expected frames of shape"), write_video(path, fps=10) as add:
        add(red)
        add(red[:-2])
