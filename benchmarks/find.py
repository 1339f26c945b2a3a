"""Search by example, measured: places of blood cells, retrieval of VOC's classes, and a million patches.

    python benchmarks/find.py --data ../shared/data                 # prints, and writes benchmarks/results/find.json
    python benchmarks/find.py --data ../shared/data --engines       # only faiss beside LanceDB (pip install lancedb)
    python benchmarks/find.py --data ../shared/data --time          # only processor time of index over that of score

Examples are drawn from train, and images are searched in val; settings were chosen by searching in train alone. Indexes
are kept in ``--work``: a second run is quick.
"""

import json
import shutil
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import RESULTS, parser, write_record
from numpy.typing import NDArray

from densescore import DenseScorer, Match, PatchIndex, load_boxed, read_image
from densescore.data.boxed_set import BoxedImage, BoxedSet
from densescore.jobs.many.table import score_table
from densescore.search.codec import Vectors, import_faiss
from densescore.search.examples import Box

BCCD_SCALES = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
VOC_SCALES = (0.7, 1.0, 1.3, 2.0, 2.8, 4.0)
VOC_CLASSES = ("bottle", "car", "cat", "chair", "cow", "dog", "horse", "person", "pottedplant", "sheep", "sofa",
               "tvmonitor")  # fmt: skip
CELLS = {"WBC": 1, "Platelets": 5}  # examples of each
TOLERANCE = 18  # pixels around a box within which a place points at it
LEAST_SIDE = 30  # pixels of an example
NEIGHBORS = 100


def index_of(images: BoxedSet, folder: Path, scales: tuple[float, ...]) -> PatchIndex:
    index = PatchIndex(folder, DenseScorer("lite0-stages", scales=scales))
    index.add(image.path for image in images.images)
    return index


def objects(images: BoxedSet, label: str) -> list[tuple[BoxedImage, Box]]:
    """Images of a set with an object of a class, each with its first that is not small or difficult."""
    column, chosen = images.classes.index(label), list[tuple[BoxedImage, Box]]()
    for image in images.images:
        sides = (image.boxes[:, 2:] - image.boxes[:, :2]).min(1)
        is_wanted = (image.classes == column) & ~image.difficult & (sides >= LEAST_SIDE)
        if is_wanted.any():
            x0, y0, x1, y1 = image.boxes[is_wanted.argmax()].tolist()
            chosen.append((image, (x0, y0, x1, y1)))
    return chosen


def boxes_of(image: BoxedImage, images: BoxedSet, label: str) -> NDArray[np.float32]:
    return image.boxes[image.classes == images.classes.index(label)]


def points_at(match: Match, boxes: NDArray[np.float32]) -> bool:
    """Whether the middle of a place lies in a box, or within the tolerance."""
    x, y = (match.box[0] + match.box[2]) / 2, (match.box[1] + match.box[3]) / 2
    outside = np.stack([boxes[:, 0] - x, x - boxes[:, 2], boxes[:, 1] - y, y - boxes[:, 3]], 1)  # [B, 4]
    return bool((outside.max(1) <= TOLERANCE).any())


def overlaps(match: Match, boxes: NDArray[np.float32], least: float) -> bool:
    place = np.array(match.box)
    sides = np.minimum(place[2:], boxes[:, 2:]) - np.maximum(place[:2], boxes[:, :2])
    shared = sides.clip(0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (place[2:] - place[:2]).prod()
    return bool((shared / (areas - shared) >= least).any())


def cells(data: Path, work: Path, split: str) -> dict[str, Any]:
    """Share of images whose best place points at a cell of the examples' kind: five draws of examples."""
    root = data / "bccd/VOCdevkit/VOC2007"
    train, searched = load_boxed(root, "train"), load_boxed(root, split)
    index = index_of(searched, work / f"bccd-{split}.index", BCCD_SCALES)
    results: dict[str, Any] = {}
    for label, count in CELLS.items():
        examples = objects(train, label)
        images = {str(image.path): boxes_of(image, searched, label) for image, _ in objects(searched, label)}
        shares, center = [], np.mean([points_at(_center(path), boxes) for path, boxes in images.items()])
        for draw in range(5):
            rows = np.random.default_rng(draw).choice(len(examples), count, replace=False)
            query = [(examples[row][0].path, examples[row][1]) for row in rows]
            known = {str(path) for path, _ in query}
            matches = index.search(query, top=len(searched.images))
            hits = [points_at(each, images[each.source]) for each in matches if each.source in images.keys() - known]
            shares.append(float(np.mean(hits)))
        results[label] = {
            "examples": count,
            "pointing": float(np.mean(shares)),
            "draws": shares,
            "center": float(center),
        }
        print(label, results[label], flush=True)
    return results


def _center(path: str) -> Match:
    height, width = read_image(path).shape[:2]
    return Match(path, (0, 0, width, height), 1.0, 0.0)


def average_precision(is_relevant: NDArray[np.bool_]) -> float:
    """Mean of the precisions at the relevant images of a ranking."""
    ranks = np.flatnonzero(is_relevant) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).mean())


def retrieval(data: Path, work: Path, split: str, draws: int) -> dict[str, Any]:
    """Ranking of images by one example box a class, beside rankings by one vector an image."""
    train, searched = (load_boxed(data / "voc2012-mini", name) for name in ("train", split))
    index = index_of(searched, work / f"voc-{split}.index", VOC_SCALES)
    number = {str(image.path): row for row, image in enumerate(searched.images)}
    lite0 = DenseScorer("lite0", scales=(1.0,))
    whole = {"center crop": _center_crop, "mean of all patches": _mean_patch}
    vectors = {
        name: np.stack([make(lite0, index.scorer, image) for image in searched.images]) for name, make in whole.items()
    }
    found: dict[str, list[list[float]]] = {name: [] for name in ("find", *whole)}
    overlap: list[bool] = []
    for label in VOC_CLASSES:
        examples = [
            (image, box) for image, box in objects(train, label) if min(box[2] - box[0], box[3] - box[1]) > LEAST_SIDE
        ]
        relevant = np.array([len(boxes_of(image, searched, label)) > 0 for image in searched.images])
        found = {name: [*rows, []] for name, rows in found.items()}
        for draw in range(draws):
            image, box = examples[np.random.default_rng(draw).integers(len(examples))]
            skipped = number.get(str(image.path), -1)  # the example's own image, when train is searched
            matches = index.search(image.path, box, top=len(searched.images))
            rows = [row for match in matches if (row := number[match.source]) != skipped]
            found["find"][-1].append(average_precision(relevant[rows]))
            best = [match for match in matches if number[match.source] != skipped and relevant[number[match.source]]][
                :10
            ]
            overlap += [
                overlaps(each, boxes_of(searched.images[number[each.source]], searched, label), 0.3) for each in best
            ]
            for name, make in whole.items():
                order = np.argsort(-(vectors[name] @ make(lite0, index.scorer, image)), kind="stable")
                found[name][-1].append(average_precision(relevant[order[order != skipped]]))
    result = {name: float(np.mean(rows)) for name, rows in found.items()}
    per_class = dict(zip(VOC_CLASSES, (float(np.mean(row)) for row in found["find"]), strict=True))
    print({**result, "overlap": np.mean(overlap)}, per_class, flush=True)
    return {"mAP": result, "AP": per_class, "share of the ten best true images with IoU 0.3": float(np.mean(overlap))}


def _unit(vector: torch.Tensor) -> Vectors:
    return (vector / vector.norm()).numpy()


def _center_crop(lite0: DenseScorer, stages: DenseScorer, image: BoxedImage) -> Vectors:
    pixels = read_image(image.path)
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return _unit(lite0.features(np.ascontiguousarray(pixels[top : top + side, left : left + side]))[0].float())


def _mean_patch(lite0: DenseScorer, stages: DenseScorer, image: BoxedImage) -> Vectors:
    return _unit(stages.features(image.path).float().mean(0))


def both_sets(data: Path, work: Path) -> tuple[list[BoxedSet], PatchIndex]:
    """VOC's train and val, and an index of both."""
    sets = [load_boxed(data / "voc2012-mini", name) for name in ("train", "val")]
    index = PatchIndex(work / "voc-both.index", DenseScorer("lite0-stages", scales=VOC_SCALES))
    index.add(image.path for images in sets for image in images.images)
    return sets, index


def million(data: Path, work: Path) -> dict[str, Any]:
    """Bytes and seconds of a search in the patches of both sets of VOC, and its recall against unquantized vectors."""
    faiss = import_faiss()
    sets, index = both_sets(data, work)
    start = time.perf_counter()
    len(index)
    loading = time.perf_counter() - start
    example, box = objects(sets[0], "dog")[0]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        index.search(example.path, box)
        seconds.append(time.perf_counter() - start)
    # Vectors before rounding, of some images, against their codes
    assert index.codec is not None
    features = np.concatenate([index.scorer.features(image.path).float().numpy() for image in sets[1].images[:100]])
    vectors, engine, exact = (
        index.codec.vectors(features),
        index.codec.searchable(),
        faiss.IndexFlatIP(index.codec.bytes),
    )
    engine.add_sa_codes(index.codec.encode(features))
    exact.add(vectors)
    queries = vectors[np.random.default_rng(0).choice(len(vectors), 200, replace=False)]
    truth, hits = (each.search(queries, NEIGHBORS)[1] for each in (exact, engine))
    recall = float(np.mean([len(np.intersect1d(*pair)) / NEIGHBORS for pair in zip(truth, hits, strict=True)]))
    size = sum(path.stat().st_size for path in index.folder.iterdir())
    result: dict[str, Any] = {
        "patches": len(index), "bytes a patch": size / len(index), "seconds to load": loading,
        "seconds a query, the example's network pass included": median(seconds), "recall at 100": recall,
    }  # fmt: skip
    print(result, flush=True)
    return result


def time_over_score(data: Path, work: Path, count: int = 24, rounds: int = 5) -> dict[str, Any]:
    """Processor seconds of `index` over those of `score` on the same images, models loaded; in turns."""
    paths = [str(image.path) for image in load_boxed(data / "voc2012-mini", "val").images[:count]]
    scorer = DenseScorer("lite0-stages", scales=VOC_SCALES)
    index, table = work / "time.index", work / "time.parquet"
    codec = PatchIndex(index, scorer)  # learned before: once an index, on at most 100 images
    codec.add(paths)
    steps = {
        "index": lambda: PatchIndex(index, scorer).add(paths),
        "score": lambda: score_table(paths, table, scorer, overwrite=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            for part in index.glob("part-*"):
                part.unlink()
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    shutil.rmtree(index)
    table.unlink()
    ratio = median(one / other for one, other in zip(*seconds.values(), strict=True))
    result = {"images": count, **seconds, "index over score": ratio}
    print(result, flush=True)
    return result


def compare_engines(data: Path, work: Path, count: int) -> list[dict[str, Any]]:
    """faiss's flat codes, its inverted product quantizer, and LanceDB's, on the same vectors."""
    import lancedb
    import pyarrow as pa

    faiss = import_faiss()
    _, flat = both_sets(data, work)[1]._content
    vectors = np.concatenate(
        [flat.reconstruct_n(start, min(65536, flat.ntotal - start)) for start in range(0, flat.ntotal, 65536)]
    )[:count]
    count, width = vectors.shape
    queries = vectors[np.random.default_rng(1).choice(count, 100, replace=False)]
    queries = queries + 0.02 * np.random.default_rng(2).standard_normal(queries.shape).astype(np.float32)
    exact = faiss.IndexFlatIP(width)
    exact.add(vectors)
    truth = exact.search(queries, NEIGHBORS)[1]
    rows = []

    def measure(name: str, build: float, size: float, search: Any) -> None:
        start = time.perf_counter()
        hits = [search(query) for query in queries]
        seconds = (time.perf_counter() - start) / len(queries)
        recall = np.mean([len(np.intersect1d(one, two)) / NEIGHBORS for one, two in zip(truth, hits, strict=True)])
        row = {
            "engine": name,
            "patches": count,
            "build_seconds": build,
            "bytes": size / count,
            "query_seconds": seconds,
            "recall": float(recall),
        }
        rows.append(row)
        print(row, flush=True)

    for name, spec in {
        "faiss, flat, a byte a component": "SQ8",
        "faiss, IVF and product quantization": "IVF1024,PQ48x8",
    }.items():
        engine = faiss.index_factory(width, spec, faiss.METRIC_INNER_PRODUCT)
        start = time.perf_counter()
        engine.train(vectors[:: max(1, count // 100_000)])
        engine.add(vectors)
        build = time.perf_counter() - start
        if "IVF" in spec:
            engine.nprobe = 32
        size = faiss.serialize_index(engine).nbytes
        measure(name, build, size, partial(_search_faiss, engine))
    folder = work / "lance"
    start = time.perf_counter()
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
    table = lancedb.connect(folder).create_table(
        "patches", pa.table({"id": np.arange(count), "vector": values}), mode="overwrite"
    )
    table.create_index(metric="dot", num_partitions=1024, num_sub_vectors=48)
    build = time.perf_counter() - start
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def search(query: Vectors) -> Any:
        return (
            table.search(query).metric("dot").nprobes(32).refine_factor(4).limit(NEIGHBORS).to_arrow()["id"].to_numpy()
        )

    measure("LanceDB, IVF and product quantization, refined", build, size, search)
    return rows


def _search_faiss(engine: Any, query: Vectors) -> Any:
    return engine.search(query[None], NEIGHBORS)[1][0]


def main() -> None:
    """Measure everything."""
    program = parser(__doc__)
    program.add_argument("--data", type=Path, required=True, help="folder with bccd and voc2012-mini")
    program.add_argument("--work", type=Path, default=Path("build/find"), help="folder of the indexes")
    program.add_argument("--split", default="val", help="set that is searched")
    program.add_argument("--draws", type=int, default=10, help="examples a class")
    program.add_argument(
        "--engines", type=int, nargs="?", const=2**20, help="only compare engines, on that many patches"
    )
    program.add_argument("--time", action="store_true", help="only compare processor time with score")
    options = program.parse_args()
    data, work = options.data, options.work
    out = RESULTS / "find.json"
    record = json.loads(out.read_text()) if out.exists() else {}
    if options.engines:
        record["engines"] = compare_engines(data, work, options.engines)
    if options.time:
        record["time"] = time_over_score(data, work)
    if not (options.engines or options.time):
        record["cells"] = cells(data, work, options.split)
        record["retrieval"] = retrieval(data, work, options.split, options.draws)
        record["million"] = million(data, work)
    write_record(out, **{name: value for name, value in record.items() if name != "machine"})


if __name__ == "__main__":
    main()
