"""The command that draws where a class is: ``densescore heatmap``."""

from pathlib import Path
from typing import Annotated

import typer

from densescore.cli.command import command
from densescore.cli.console import describe_map, err, say, say_json
from densescore.cli.images import Images, JsonLines, each
from densescore.cli.options import ClassOptions, Overwrite, ScorerOptions, check_new, one_of, out_option
from densescore.cli.progress import Progress


@command(
    "densescore heatmap photo.jpg --classes 'tabby,Egyptian cat'",
    "densescore heatmap photos/ --top 6 --sheet -o maps",
    "densescore heatmap clip.mp4 --classes 'golden retriever' --fps 10",
)
def heatmap(
    images: Images,
    out: Annotated[Path, out_option("Folder to write to: one folder inside per image.", True)] = Path("heatmaps"),
    classes: ClassOptions = ClassOptions(),
    top: Annotated[int, typer.Option(help="Without --classes: map as many of the best.", min=1)] = 1,
    colors: Annotated[
        str,
        typer.Option(
            "--colors",
            "--colours",
            help="relative: the map fades out away from its peak. absolute: 0 to 1 in every picture, to compare them. "
            "rescaled: from the map's minimum to its maximum.",
        ),
    ] = "relative",
    opacity: Annotated[float, typer.Option(help="Of the color at the peak.", min=0, max=1)] = 0.65,
    colormap: Annotated[str, typer.Option(help="A colormap of matplotlib.")] = "turbo",
    sheet: Annotated[
        bool, typer.Option("--sheet", help="Also one picture per image: it and its maps side by side, on one scale.")
    ] = False,
    fps: Annotated[
        float | None,
        typer.Option(
            help="Frames per second of videos. With it, videos are also taken out of folders.",
            min=1e-6,
            show_default="5",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: JsonLines = False,
    options: ScorerOptions = ScorerOptions(),
) -> None:
    """Write response maps: per class a picture and the raw map (npz); of a video an annotated one and a table (csv)."""
    options.arguments()
    one_of(colors, ("relative", "absolute", "rescaled"), "--colors")
    options.check_classes(classes.names)
    from densescore.io.files import clear_scratch
    from densescore.io.find_images import list_images
    from densescore.io.images import read_image
    from densescore.io.names import folder_names
    from densescore.io.video import is_video
    from densescore.jobs.annotated_video import annotate_video
    from densescore.results.heatmaps import HEATMAPS, export_heatmaps
    from densescore.results.overlay import check_look
    from densescore.results.sheet import check_sheet_look

    check = check_sheet_look if sheet else check_look
    check(colors, opacity, colormap)  # type: ignore[arg-type]
    paths = list_images(images, videos=fps is not None)
    scorer = options.build()
    chosen = classes.among(scorer.labels)
    folders = dict(zip(paths, folder_names(path.stem for path in paths), strict=True))
    inputs = [*paths, *options.files]
    clear_scratch(out)  # of killed runs

    def work(path: Path) -> None:
        folder = out / folders[path]
        check_new(folder, overwrite, inputs, HEATMAPS)
        if is_video(path):
            work_on_video(path, folder)
            return
        pixels = read_image(path)
        scores = scorer.score(pixels)
        labels = chosen or [best.label for best in scores.top(top)]
        manifest = export_heatmaps(
            scores,
            pixels,
            labels,
            folder,
            source=str(path),
            colors=colors,  # type: ignore[arg-type]
            opacity=opacity,
            colormap=colormap,
            with_sheet=sheet,
            overwrite=overwrite,
            inputs=inputs,
        )
        if as_json:
            say_json({"folder": str(folder), **manifest})
            return
        if sheet:
            say(f"{folder / manifest['sheet']}  {len(labels)} maps side by side")
        for entry in manifest["classes"]:
            say(f"{folder / entry['overlay']}  {describe_map(entry)}")

    def work_on_video(path: Path, folder: Path) -> None:
        with Progress("frames", shown=len(paths) == 1 or not err.is_terminal) as progress:  # one bar at a time
            task = progress.add(path.name)
            manifest = annotate_video(
                path,
                scorer,
                folder,
                chosen,
                top=top,
                fps=fps or 5.0,
                colors=colors,  # type: ignore[arg-type]
                opacity=opacity,
                colormap=colormap,
                overwrite=overwrite,
                inputs=inputs,
                callback=lambda done, total: progress.update(task, done, total=total),
            )
        if as_json:
            say_json({"folder": str(folder), **manifest})
            return
        for entry in manifest["classes"]:
            say(f"{folder / entry['video']}  {entry['label']}: {manifest['video']['frames']} frames")

    each(paths, as_json, work)
