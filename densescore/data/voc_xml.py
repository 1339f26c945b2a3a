"""One annotation in PASCAL VOC's XML, as VOC, LabelImg, CVAT and Roboflow write it."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from densescore.data.boxed_set import Annotated
from densescore.data.files import read_xml
from densescore.data.problems import Corners, Problems, finite_number, whole_number


@dataclass(frozen=True)
class XmlObject:
    """One object.

    Attributes:
        where: file and number, for messages.
        index: of the object in its file, from 1.
        label: its class.
        corners: in pixels from 0, ends excluded; None if it has no ``bndbox``.
        difficult: as VOC marks it.
    """

    where: str
    index: int
    label: str
    corners: Corners | None
    difficult: bool


@dataclass(frozen=True)
class XmlAnnotation:
    """What one file says: width and height of the picture, and its objects."""

    path: Path
    size: tuple[int, int]
    objects: tuple[XmlObject, ...]

    def annotated(self, classes: dict[str, int], problems: Problems) -> list[Annotated]:
        """The objects, their classes as indices; a class that is not in `classes` is noted."""
        found = []
        for item in self.objects:
            if item.label in classes:
                found.append(Annotated(item.where, classes[item.label], item.corners, item.difficult))
            else:
                known = ", ".join(classes)
                problems.add(item.where, f"name: unknown class {item.label!r}, not one of {known}")
        return found


def read_annotation(path: Path, problems: Problems, *, boxes: bool = True) -> XmlAnnotation | None:
    """Read one file.

    VOC counts pixels from 1 and includes both ends; boxes here start from 0 and exclude their ends.

    Args:
        path: of the XML file.
        problems: notes what is wrong, with file, object and field.
        boxes: read the size and the boxes; else only which classes there are.

    Returns:
        What it says, without objects that a problem was noted of; None if the file or its size cannot be read.
    """
    root = read_xml(path, problems)
    if root is None:
        return None
    if root.tag != "annotation":
        problems.add(path, f"expected <annotation>, got <{root.tag}>")
        return None
    sides = [_side(root, f"size/{side}", path, problems) if boxes else 1 for side in ("width", "height")]
    objects = [_object(path, index, item, boxes, problems) for index, item in enumerate(root.findall("object"), 1)]
    if None in sides:
        return None
    return XmlAnnotation(path, (sides[0] or 0, sides[1] or 0), tuple(item for item in objects if item is not None))


def _object(path: Path, index: int, element: ElementTree.Element, boxes: bool, problems: Problems) -> XmlObject | None:
    where = f"{path}: object {index}"
    label = (element.findtext("name") or "").strip()
    if not label:
        problems.add(where, "name: missing")
    flag = (element.findtext("difficult") or "0").strip()
    if flag not in ("0", "1"):
        problems.add(where, f"difficult: expected 0 or 1, got {flag!r}")
    corners: Corners | None = None
    if boxes and element.find("bndbox") is not None:
        ends = [_number(element, f"bndbox/{end}", where, problems) for end in ("xmin", "ymin", "xmax", "ymax")]
        x0, y0, x1, y1 = (float("nan") if end is None else end for end in ends)
        if None in ends:
            return None
        corners = x0 - 1, y0 - 1, x1, y1
    return XmlObject(where, index, label, corners, flag == "1") if label else None


def _side(element: ElementTree.Element, field: str, where: object, problems: Problems) -> int | None:
    text = element.findtext(field)
    side = whole_number(_float(text))
    if side is None:
        problems.add(where, f"{field}: expected a whole number from 1 on, got {text!r}")
    return side


def _number(element: ElementTree.Element, field: str, where: object, problems: Problems) -> float | None:
    text = element.findtext(field)
    number = finite_number(_float(text))
    if number is None:
        problems.add(where, f"{field}: expected a number, got {text!r}")
    return number


def _float(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
