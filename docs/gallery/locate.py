"""Boxes of what a photograph shows: drawn by supervision, and as a file in COCO's format."""

import json
from pathlib import Path

import cv2
import cyclopts
import skimage
import supervision
from PIL import Image

import densescore


def main(out: Path = Path(__file__).with_suffix(".jpg"), results: Path | None = None) -> None:
    photo = skimage.data.coffee()
    label = "espresso"
    scores = densescore.classify(photo)

    found = scores.to_supervision(label, share=0.7)  # where its map is above 0.7 of its peak
    (place,) = scores.locate(label)  # the most likely location of the class
    names = [f"{name} {peak:.2f}" for name, peak in zip(found.data["class_name"], found.confidence, strict=True)]
    picture = supervision.BoxAnnotator(thickness=3).annotate(photo.copy(), found)
    picture = supervision.LabelAnnotator(text_position=supervision.Position.BOTTOM_LEFT).annotate(
        picture, found, labels=names
    )
    cv2.drawMarker(picture, (int(place.x), int(place.y)), color=(255, 255, 255), thickness=3)
    Image.fromarray(picture).save(out, quality=88)

    records = scores.to_coco(image_id=1, labels=label, category_ids={label: 47}, share=0.7)  # COCO's own id of "cup"
    print(json.dumps(records, indent=1))
    if results:
        results.write_text(json.dumps(records))


if __name__ == "__main__":
    cyclopts.run(main)
