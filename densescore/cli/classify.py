"""The command that ranks classes: ``densescore classify``."""

from pathlib import Path
from typing import Annotated

import typer

from densescore.cli.command import command
from densescore.cli.console import say_json, show_table
from densescore.cli.images import Fps, Images, JsonLines, each
from densescore.cli.options import ClassOptions, ScorerOptions


@command(
    "densescore classify photo.jpg",
    "densescore classify photos/ --top 3 --json > scores.jsonl",
    "densescore classify photos/ --classes dog,cat",
)
def classify(
    images: Images,
    fps: Fps = None,
    top: Annotated[int, typer.Option(help="Classes to name per image; of --classes, all.", min=1)] = 5,
    classes: ClassOptions = ClassOptions(),
    as_json: JsonLines = False,
    options: ScorerOptions = ScorerOptions(),
) -> None:
    """Rank the classes of each image by the paper's score, the mean k-th power of its patches' scores.

    With --classes, only these: classes, or groups such as dog, whose breeds' probabilities add up.
    """
    options.arguments()
    options.check_classes(classes.names)
    from densescore.io.find_images import list_images
    from densescore.io.names import text_values
    from densescore.jobs.many.inputs import image_names

    paths = [Path(name) for path in list_images(images, videos=fps is not None) for name in image_names(path, fps)]
    scorer = options.build()
    chosen = classes.among(scorer.labels)
    top = max(top, len(chosen))

    def work(path: Path) -> None:
        scores = scorer.score(path)
        if chosen:
            scores = scores.select(chosen)
        if as_json:
            from densescore.results.heatmaps import describe

            say_json({**describe(scores, str(path)), "top": text_values([best._asdict() for best in scores.top(top)])})
            return
        rows = [
            (label, f"{confidence:.2g}", f"{best_patch:.2g}", f"{score:.2g}")
            for label, score, confidence, best_patch in scores.top(top)
        ]
        show_table(("class", "confidence", "best patch", "score"), rows, title=str(path))

    each(paths, as_json, work)
