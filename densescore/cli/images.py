"""Commands that score images one by one: ``densescore classify | heatmap | huge | demo``."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts.types import NonNegativeInt, PositiveInt
from cyclopts.validators import Number

from densescore.cli import options as cli
from densescore.cli.console import Progress, describe_map, err, error, fraction, info, notice, print_json, print_table
from densescore.cli.program import examples
from densescore.errors import DensescoreError, MissingPackageError

if TYPE_CHECKING:
    from densescore.scoring.scorer import DenseScorer

Images = Annotated[list[Path], cli.option("Images or videos, or folders of them.")]
BestMapped = Annotated[PositiveInt, cli.option("Number of best classes to map, without --classes.")]


@dataclass(frozen=True)
class HugeOptions(cli.ScorerOptions):
    """Without --scales, since the levels of a huge image follow from patch sizes."""

    scales: Annotated[str, cli.NOT_AN_OPTION] = ""
    patch_sizes: cli.PatchSizes = "224,448"


@dataclass(frozen=True)
class DemoOptions(cli.ScorerOptions):
    """Options that all models of the demo share."""

    model: Annotated[str, cli.NOT_AN_OPTION] = "lite0"
    weights: Annotated[str | None, cli.NOT_AN_OPTION] = "default"
    patch_sizes: Annotated[str, cli.NOT_AN_OPTION] = ""
    stride: Annotated[int | None, cli.NOT_AN_OPTION] = None


@examples(
    "densescore classify photo.jpg",
    "densescore classify photos/ --top 3 --json > scores.jsonl",
    "densescore classify photos/ --classes dog,cat",
)
def classify(
    images: Images,
    /,
    *,
    fps: Annotated[float | None, cli.ONE_FPS] = None,
    top: Annotated[PositiveInt, cli.option("Number of classes to print per image; of --classes, all.")] = 5,
    classes: cli.ClassOptions = cli.ClassOptions(),
    as_json: cli.JsonLines = False,
    options: cli.ScorerOptions = cli.ScorerOptions(),
) -> None:
    """Rank the classes of each image by the paper's score, the mean k-th power of its patch scores.

    With --classes, rank these only: classes, or groups such as dog, which sum the probabilities of their breeds.
    """
    options.check(classes.names)
    from densescore.io.find import list_images
    from densescore.io.names import text_values
    from densescore.jobs.many.table import image_names

    paths = [Path(name) for path in list_images(images, videos=fps is not None) for name in image_names(path, fps)]
    scorer = _build(options, paths)
    names = classes.among(scorer.labels)
    top = max(top, len(names))
    if scorer.calibration is None:
        notice(f"{scorer.name} has no probabilities at these scales and k: its confidences are shown")

    def work(path: Path) -> None:
        scores = scorer.score(path)
        if names:
            scores = scores.select(names)
        if as_json:
            from densescore.results.heatmaps import describe

            ranking = text_values([best._asdict() for best in scores.top(top)])
            print_json({**describe(scores, str(path)), "top": ranking})
            return
        best = scores.top(top)
        if scorer.calibration is not None:
            print_table(
                ("class", "probability", "answer"),
                [(each.label, fraction(each.probability), each.answer or "–") for each in best], title=str(path),
            )  # fmt: skip
            return
        rows = [(each.label, *(f"{n:.2g}" for n in (each.confidence, each.best_patch, each.score))) for each in best]
        print_table(("class", "confidence", "best patch", "score"), rows, title=str(path))

    _for_each(paths, as_json, work)


@examples(
    "densescore heatmap photo.jpg --classes 'tabby,Egyptian cat'",
    "densescore heatmap photos/ --top 6 --sheet -o maps",
    "densescore heatmap clip.mp4 --classes 'golden retriever' --fps 10",
)
def heatmap(
    images: Images,
    /,
    *,
    out: Annotated[Path, cli.out_option("Output folder, with a subfolder per image.")] = Path("heatmaps"),
    classes: cli.ClassOptions = cli.ClassOptions(),
    top: BestMapped = 1,
    colors: Annotated[
        Literal["relative", "absolute", "rescaled"],
        cli.more_option("Relative to the map's peak, absolute (0 to 1), or from its minimum.", "--colors", "--colours"),
    ] = "relative",
    opacity: Annotated[float, cli.more_option("Opacity at the peak.", validator=Number(gte=0, lte=1))] = 0.65,
    colormap: Annotated[str, cli.more_option("Colormap of matplotlib.")] = "turbo",
    colorbar: Annotated[bool, cli.more_option("Draw the scale of the colors.")] = True,
    min_confidence: Annotated[
        float, cli.more_option("Least probability of a drawn box.", validator=Number(gte=0, lte=1))
    ] = 0.25,
    sheet: Annotated[bool, cli.option("Also write the image and its heatmaps side by side.")] = False,
    shared_scale: Annotated[bool, cli.more_option("One scale for all panels of the sheet, as in the paper.")] = False,
    fps: Annotated[float | None, cli.FIVE_FPS] = None,
    overwrite: cli.Overwrite = False,
    as_json: cli.JsonLines = False,
    options: cli.ScorerOptions = cli.ScorerOptions(),
) -> None:
    """Write heatmaps: a picture and the raw maps (.npz) per class; for a video, an annotated video and a CSV."""
    # Check all arguments
    options.check(classes.names)
    from densescore.io.files import clear_scratch
    from densescore.io.find import list_images
    from densescore.io.images import read_image
    from densescore.io.names import as_text, folder_names
    from densescore.io.video import is_video
    from densescore.jobs.annotated_video import annotate_video
    from densescore.results.draw import Style, StyleOptions
    from densescore.results.heatmaps import HEATMAPS, describe_geometry, export_heatmaps

    style: StyleOptions = {
        "colors": colors, "opacity": opacity, "colormap": colormap, "colorbar": colorbar, "shared_scale": shared_scale,
        "min_confidence": min_confidence,
    }  # fmt: skip
    Style(**style)  # raises its errors before any work
    paths = list_images(images, videos=fps is not None)

    # Load the model
    scorer = _build(options, paths)
    names = classes.among(scorer.labels)
    folders = dict(zip(paths, folder_names(path.stem for path in paths), strict=True))
    inputs = [*paths, *options.files]
    drawing: dict[str, Any] = {**style, "overwrite": overwrite, "inputs": inputs}
    clear_scratch(out)  # of killed runs

    def work(path: Path) -> None:
        folder = out / folders[path]
        finished = None if overwrite else read_finished(path, folder)
        if finished is not None:
            notice(f"{folder}: finished before, and skipped; --overwrite draws it again")
            if as_json:
                print_json({"folder": str(folder), **finished})
            return
        pixels = None if is_video(path) else read_image(path)  # its errors come before those of the output
        cli.check_new(folder, overwrite, inputs, HEATMAPS)
        if pixels is None:
            work_on_video(path, folder)
            return
        scores = scorer.score(pixels)
        labels = names or [best.label for best in scores.top(top)]
        manifest = export_heatmaps(scores, pixels, labels, folder, source=str(path), with_sheet=sheet, **drawing)
        if as_json:
            print_json({"folder": str(folder), **manifest})
            return
        if sheet:
            info(f"{folder / manifest['sheet']}  {len(labels)} maps side by side")
        for entry in manifest["classes"]:
            info(f"{folder / entry['overlay']}  {describe_map(entry)}")

    def read_finished(path: Path, folder: Path) -> dict[str, Any] | None:
        """The manifest of an earlier run on this image with this model and these classes, or None."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            file = folder / "manifest.json"
            manifest: dict[str, Any] = json.loads(file.read_text())
            image, video = manifest["image"], manifest.get("video", {})
            made = [image["source"], manifest["model"], manifest["k"], manifest["geometry"]]
            made += ["sheet" in manifest, video.get("fps")]
            geometry = describe_geometry(scorer.pyramid(image["height"], image["width"]))
            wanted = [as_text(str(path)), as_text(scorer.name), scorer.k, geometry]
            wanted += [sheet and not video, (fps or 5.0) if video else None]
            labels = [entry["label"] for entry in manifest["classes"]]
            same = labels == [*map(as_text, names)] if names else len(labels) == top
            newest = max(os.path.getmtime(item) for item in (path, *options.files) if os.path.isfile(item))
            return manifest if made == wanted and same and newest <= file.stat().st_mtime else None
        return None

    def work_on_video(path: Path, folder: Path) -> None:
        with Progress("frames", shown=len(paths) == 1 or not err.is_terminal) as progress:  # one bar at a time
            task = progress.add(path.name)

            def callback(done: int, total: int) -> None:
                progress.update(task, done, total=total)

            manifest = annotate_video(
                path, scorer, folder, names, top=top, fps=fps or 5.0, callback=callback, **drawing
            )
        if as_json:
            print_json({"folder": str(folder), **manifest})
            return
        for entry in manifest["classes"]:
            info(f"{folder / entry['video']}  {entry['label']}: {manifest['video']['frames']} frames")

    _for_each(paths, as_json, work)


def _build(options: cli.ScorerOptions, paths: Sequence[Path]) -> "DenseScorer":
    """The scorer. One photograph runs in torch, which starts sooner; many, or a video, in the faster runtime."""
    from densescore.io.video import is_video

    single = len(paths) == 1 and not is_video(paths[0]) and options.runtime == "auto"
    return options.build(runtime="torch") if single else options.build()


def _for_each(paths: Sequence[Path], as_json: bool, work: Callable[[Path], None]) -> None:
    """Work on every image; report those that fail, and exit with status 1 if any did."""
    failed = 0
    with Progress(shown=len(paths) > 1) as progress:
        task = progress.add("images", len(paths))
        for done, path in enumerate(paths, 1):
            try:
                work(path)
            except DensescoreError as problem:
                failed += 1
                if as_json:
                    print_json({"image": str(path), "error": str(problem)})
                error(problem)
            progress.update(task, done, failed=failed)
    if failed:
        error(f"{failed} of {len(paths)} images failed")
        sys.exit(1)


@examples(
    "densescore huge slide.tif -o slide-scores --classes 'sea urchin'",
    "densescore huge scene.tif -o scene-scores --model trees.safetensors --patch-sizes 128,256 --map-step 8",
)
def huge(
    image: Annotated[Path, cli.option("TIFF, BigTIFF, GeoTIFF or zarr image.")],
    /,
    *,
    out: Annotated[Path, cli.out_option("Output folder; an unfinished one is resumed.")],
    classes: cli.ClassOptions = cli.ClassOptions(),
    top: BestMapped = 1,
    map_step: Annotated[PositiveInt, cli.option("Image pixels per map pixel.")] = 1,
    memory: Annotated[float, cli.more_option("Memory in GB for one tile in the network.")] = 1.0,
    bands: Annotated[str, cli.more_option("Channels to read, counted from 0, separated by commas: 0,1,2.")] = "",
    overwrite: Annotated[bool, cli.option("Start over if the folder holds other scores.")] = False,
    as_json: cli.Json = False,
    options: HugeOptions = HugeOptions(),
) -> None:
    """Score an image too large for memory, tile by tile. If interrupted, run the same command to resume."""
    options.check(classes.names)
    channels = [int(band) for band in cli.numbers(bands, "--bands")] or None
    from densescore.jobs.huge.scoring import score_huge

    scorer = options.build()
    with Progress("tiles") as progress:
        result = score_huge(
            scorer, image, out, classes=classes.names, top=top, map_step=map_step, memory=memory, bands=channels,
            overwrite=overwrite, inputs=options.files, track=progress.track,
        )  # fmt: skip
    if as_json:
        print_json(result)
        return
    for entry in result["classes"]:
        info(f"{out / entry['response_map']}  {describe_map(entry)}")
    info(f"{out / 'places.csv'}  best patches of each class")


@examples("densescore demo", "densescore demo --model lite0 --model birds.safetensors --examples photos/ --port 8000")
def demo(
    *,
    model: Annotated[list[str] | None, cli.option("Model name or trained head (.safetensors); repeatable.")] = None,
    example_images: Annotated[
        Path | None, cli.option("Folder of example images to offer; samples by default.", "--examples")
    ] = None,
    index: Annotated[Path | None, cli.option("Index of densescore index, to find places like a drawn box.")] = None,
    host: Annotated[str, cli.option("Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, cli.option("Port to listen on.", validator=Number(gte=1, lte=65535))] = 7860,
    root_path: Annotated[str, cli.more_option("Path prefix behind a proxy.")] = "",
    proxy: Annotated[list[str] | None, cli.more_option("Proxy to trust for X-Forwarded-For; repeatable.")] = None,
    allowed_host: Annotated[
        list[str] | None, cli.more_option("Host name to answer to, in addition to localhost and --host; repeatable.")
    ] = None,
    upload: Annotated[float, cli.more_option("Upload limit in megabytes.", validator=Number(gte=0.01))] = 20,
    pixels: Annotated[float, cli.more_option("Image limit in megapixels.", validator=Number(gte=0.01))] = 50,
    max_cells: Annotated[PositiveInt, cli.more_option("Patch limit per image.")] = 8000,
    seconds: Annotated[float, cli.more_option("Time limit per request, queue included.", validator=Number(gte=1))] = 60,
    waiting: Annotated[NonNegativeInt, cli.more_option("Queue length: images that wait.")] = 8,
    options: DemoOptions = DemoOptions(),
) -> None:
    """Serve a page that classifies and locates what a dropped photograph shows, and the same as an HTTP API."""
    options.check()
    if not host.strip():  # an unset variable; a server would listen at every address
        raise DensescoreError("--host: is empty; expected an address such as 127.0.0.1, or 0.0.0.0 for all")
    try:
        from densescore.demo.api import sample_photographs
        from densescore.demo.limits import Limits
        from densescore.demo.server import build_app, make_server
        from densescore.demo.service import Service
    except ImportError as problem:
        raise MissingPackageError(f"the page needs {problem.name}: pip install 'densescore[demo]'") from problem
    from densescore.io.find import list_images

    names = model or [options.model]
    # JSON and browsers take valid Unicode only
    builders: dict[str, Callable[[], DenseScorer]] = {
        Path(name).name.encode(errors="replace").decode(): replace(options, model=name).build for name in names
    }
    if len(builders) < len(names):
        raise DensescoreError(f"--model: two models share a name: {', '.join(names)}")
    found = list_images([example_images])[:12] if example_images else sample_photographs()
    pictures = [str(path.resolve()) for path in found]
    limits = Limits(
        upload=int(upload * 1e6), pixels=int(pixels * 1e6), cells=max_cells, seconds=seconds, waiting=waiting
    )
    places = None
    if index is not None:
        from densescore.search.index import PatchIndex

        places = PatchIndex.open(index)
        len(places)  # reads it, and raises its errors now
    service = Service(builders, limits, index=places)
    try:
        for name in builders:  # report a broken model now, not at the first request
            service.load(name)
        web = build_app(
            service,
            pictures,
            root_path=root_path or None,
            proxies=proxy or (),
            allowed_hosts=[host, *(allowed_host or ())],
        )
        server = make_server(web, host, port)
        bound = server.config.bind_socket()
        address = f"[{host}]" if ":" in host else host
        notice(f"page: http://{address}:{port}/; POST an image to /score for JSON")
        server.run(sockets=[bound])
    finally:
        if not service.close():  # Python would wait for the image in the network
            os._exit(0)
