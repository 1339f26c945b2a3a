"""How densescore scores architectures of torchvision and timm: a table with random weights.

    python benchmarks/coverage.py --jobs 4   # minutes to an hour; run it again to resume
    python benchmarks/coverage.py resnet18 timm:vit_tiny_patch16_224     # these only, printed

For each architecture: whether it is scored densely, by crops, or refused, and why; whether its scores of one image of
P×P pixels equal those of the module's own forward pass, up to a few times the module's own rounding error (its float32
against its float64); whether the scores of an image of another shape are finite. Each has its own process, and none can
end the run.
"""

import copy
import json
import multiprocessing
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from common import RESULTS, markdown, parser, read_json, write_json, write_text
from torch import Tensor, nn

from densescore import DensescoreError, DenseScorer
from densescore.errors import NotConvolutionalError
from densescore.scoring.scorer import Context

CLASSES = 10
SIDE = 96  # of a patch, where the network takes it; else its own
SECONDS = 120  # for one architecture
FACTOR = 10  # times the network's own rounding error that scores may be off
FLOOR = 1e-6  # relative; a network without rounding error has one operation in another order all the same

TORCHVISION = """
alexnet convnext_tiny convnext_small convnext_base densenet121 densenet161 densenet169 densenet201 efficientnet_b0
efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_x_800mf
regnet_x_1_6gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf resnet18 resnet34 resnet50 resnet101 resnext50_32x4d
wide_resnet50_2 shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1
swin_t swin_v2_t vgg11 vgg11_bn vgg13 vgg16 vgg16_bn vit_b_16 vit_b_32
"""

TIMM = """
beit_base_patch16_224 eca_halonext26ts eca_botnext26ts_256 halonet26t botnet26t_256 lambda_resnet26t sehalonet33ts
mobileone_s0 mobileone_s1 repvgg_b0 repvgg_a0 resnext26ts gcresnext26ts seresnext26ts bat_resnext26ts eca_resnext26ts
gernet_s gernet_m cait_xxs24_224 coat_tiny coat_lite_tiny convit_tiny convmixer_1024_20_ks9_p14 convmixer_768_32
convnext_zepto_rms convnext_zepto_rms_ols convnext_atto convnext_atto_ols convnext_atto_rms convnext_femto
convnext_pico convnextv2_atto convnextv2_femto convnextv2_pico cpubone_nano crossvit_tiny_240 csatv2 cspresnet50
cspdarknet53 cs3darknet_s cs3sedarknet_x cspnext_tiny davit_tiny deit_tiny_patch16_224 deit_tiny_distilled_patch16_224
deit3_small_patch16_224 densenetblur121d dla34 dla46_c dla46x_c dla60_res2net dpn68 edgenext_xx_small edgenext_small
efficientformer_l1 efficientformerv2_s0 mnasnet_050 mnasnet_small semnasnet_050 mobilenetv2_035 mobilenetv2_050
fbnetc_100 mobilenet_edgetpu_v2_xs efficientnet_b0 efficientnet_b0_gn efficientnet_b0_g16_evos tf_efficientnet_b0
tf_efficientnet_lite0 tf_efficientnetv2_b0 efficientnet_blur_b0 efficientnet_cc_b0_4e tf_efficientnet_cc_b0_8e
efficientnet_es tinynet_e tinynet_a mixnet_s tf_mixnet_s spnasnet_100 efficientvim_m1 efficientvit_b0 efficientvit_b1
efficientvit_m0 efficientvit_m1 eva02_tiny_patch14_224 fasternet_t0 fasternet_t1 fastvit_t8 fastvit_s12 fastvit_sa12
focalnet_tiny_srf gcvit_xxtiny ghostnet_050 ghostnet_100 ghostnetv2_100 ghostnetv3_050 hardcorenas_a hgnetv2_b0
hgnet_tiny hiera_tiny_224 hieradet_small hrnet_w18_small hrnet_w18_small_v2 iformer_s inception_next_atto
inception_next_tiny lcnetv2_small levit_128s levit_conv_128s lowformer_b0 mambaout_femto mambaout_kobe
maxvit_pico_rw_256 coatnet_pico_rw_224 coatnet_nano_cc_224 maxxvit_rmlp_nano_rw_256 poolformer_s12 poolformerv2_s12
convformer_s18 caformer_s18 gmixer_24_224 gmlp_s16_224 mixer_s32_224 mixer_s16_224 resmlp_12_224 lcnet_035 lcnet_050
mobilenetv3_small_050 mobilenetv3_small_075 mobilenetv3_large_075 mobilenetv3_rw mobilenetv4_conv_small_050
mobilenetv4_conv_small mobilenetv4_conv_medium mobilenetv4_hybrid_medium fbnetv3_b mobilevit_xxs mobilevitv2_050
mvitv2_tiny nest_tiny nextvit_small nf_regnet_b0 nf_resnet26 nf_seresnet26 nf_ecaresnet26 eca_nfnet_l0 pit_ti_224
pvt_v2_b0 rdnet_tiny regnetx_002 regnetx_004 regnety_002 regnety_004 regnetv_040 regnetz_005 repghostnet_050
repvit_m0_9 repvit_m1 res2net50_14w_8s res2next50 resnest14d resnest26d resnet10t resnet14t resnet18 resnet18d
resnet26t resnet34 resnet50 resnet50_gn resnetblur18 resnetaa34d seresnet18 seresnet34 ecaresnet26t ecaresnext26t_32x4d
skresnet18 resnetv2_18 resnetv2_50d_gn resnetv2_50d_evos resnetv2_50d_frn rexnet_100 rexnetr_100 selecsls42 selecsls60b
legacy_seresnet18 legacy_seresnext26_32x4d sequencer2d_s shvit_s1 starnet_s050 starnet_s1 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m
twins_svt_small twins_pcpvt_small visformer_tiny vit_tiny_patch16_224 vit_xsmall_patch16_clip_224
vit_base_patch32_clip_224 vit_tiny_r_s16_p8_224 vit_relpos_small_patch16_224 volo_d1_224 ese_vovnet19b_slim
ese_vovnet19b_dw legacy_xception xcit_nano_12_p16_224
"""


def names() -> list[str]:
    """As ``--model`` takes them, smallest of each kind."""
    return [
        f"{library}:{name}"
        for library, kinds in (("torchvision", TORCHVISION), ("timm", TIMM))
        for name in kinds.split()
    ]


def build(name: str) -> tuple[nn.Module, int]:
    """The architecture with random weights, and the side of the images that it was made for."""
    library, _, kind = name.partition(":")
    torch.manual_seed(0)
    if library == "timm":
        module: Any = timm.create_model(kind, num_classes=CLASSES)
        return module.eval(), int(module.default_cfg["input_size"][1])
    options: dict[str, Any] = {"init_weights": False} if kind in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(kind, num_classes=CLASSES, **options).eval(), 224


def liven(module: nn.Module, crop: Tensor) -> None:
    """Give the logits a standard deviation of 2 and no bias, so that scores differ, as after training."""
    last = [
        layer
        for layer in module.modules()
        if CLASSES in (getattr(layer, "out_features", 0), getattr(layer, "out_channels", 0))
    ]
    try:
        with torch.no_grad():
            for layer in last[-1:]:
                if not any(parameter.any() for parameter in layer.parameters()):  # some start from zeros
                    layer.reset_parameters()  # type: ignore[operator]
                if getattr(layer, "bias", None) is not None:
                    layer.bias.zero_()  # type: ignore[operator]
                deviation = float(module(crop).std())
                for parameter in layer.parameters() if deviation > 0 else ():
                    parameter.mul_(2 / deviation)
    except Exception:  # another size is needed, which the scorer says
        return


def check(name: str) -> dict[str, Any]:
    """One line of the table."""
    module, own_side = build(name)
    entry: dict[str, Any] = {"name": name, "parameters": sum(each.numel() for each in module.parameters())}
    for side in dict.fromkeys((SIDE, own_side)):
        entry["patch"] = side
        try:
            return entry | {"outcome": "dense", "reason": ""} | _check_at(module, side, "image")
        except NotConvolutionalError as error:  # with another size of patch it may be
            entry |= {"outcome": "crops", "reason": str(error)}
        except DensescoreError as error:
            entry |= {"outcome": "refused", "reason": str(error)}
    if entry["outcome"] == "crops":
        try:
            entry |= _check_at(module, entry["patch"], "patch")
        except DensescoreError as error:
            entry |= {"outcome": "refused", "reason": f"by crops: {error} (dense: {entry['reason']})"}
    return entry


def _check_at(module: nn.Module, side: int, context: Context) -> dict[str, Any]:
    """What a scorer gives for an image of one patch, and for one of an odd size."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (side, side, 3), np.uint8)
    crop = torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None].sub(0.5).div(0.5)
    liven(module, crop)
    start = time.perf_counter()
    scorer = DenseScorer(
        module, patch_size=side, scales=(1,), mean=(0.5,) * 3, std=(0.5,) * 3, runtime="torch", context=context
    )
    seconds = time.perf_counter() - start
    expected, exact = _log_probabilities(module, crop)
    actual = scorer.score(image).patch_scores.double().log()
    unit = float(exact.std())
    own_error = float((expected - exact).abs().max()) / unit
    difference = float((actual - exact).abs().max()) / unit
    height, width = (side * 6 // 5 + 1, side * 3 // 2 + 3) if context == "image" else (side + 1, side + 3)
    odd = scorer.score(generator.integers(0, 256, (height, width, 3), np.uint8))
    return {
        "stride": scorer.network.stride,
        "level_context": list(scorer.dense.level_context) if context == "image" else [],
        "own_error": own_error,
        "difference": difference,
        "equal": difference <= FACTOR * own_error + FLOOR,
        "odd_patches": len(odd.patch_scores),
        "odd_finite": bool(odd.patch_scores.isfinite().all()),
        "seconds": seconds,
    }


def _log_probabilities(module: nn.Module, crop: Tensor) -> tuple[Tensor, Tensor]:
    """Of the module's own forward pass, in float32 and in float64."""
    with torch.inference_mode():
        single = module(crop).double().log_softmax(1)
        return single, copy.deepcopy(module).double()(crop.double()).log_softmax(1)


def _child(name: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    try:
        entry = check(name)
    except Exception as error:  # the finding that this table is for
        trace = traceback.format_exc(limit=-3)
        entry = {"name": name, "outcome": "crash", "reason": f"{type(error).__name__}: {error}", "trace": trace}
    pipe.send(entry)


def run(names: Iterable[str], jobs: int) -> Iterator[dict[str, Any]]:
    """`check` of each in its own process; one that dies or exceeds `SECONDS` is a crash."""
    fork = multiprocessing.get_context("fork")
    waiting = list(names)
    running: dict[Connection, tuple[str, Any, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mine, theirs = fork.Pipe()
            process = fork.Process(target=_child, args=(waiting[0], theirs))
            process.start()
            theirs.close()
            running[mine] = (waiting.pop(0), process, time.monotonic() + SECONDS)
        ready = wait(list(running), timeout=1)
        for pipe, (name, process, deadline) in list(running.items()):
            entry: dict[str, Any] = {"name": name, "outcome": "crash", "reason": f"more than {SECONDS} s"}
            if pipe in ready:
                try:
                    entry = pipe.recv()
                except EOFError:
                    entry["reason"] = "the process died"
            elif time.monotonic() < deadline:
                continue
            process.kill()
            process.join()
            del running[pipe]
            yield entry


def right(entry: dict[str, Any]) -> bool:
    """Scored, densely or by crops, with the network's own scores."""
    return bool(entry.get("equal") and entry.get("odd_finite"))


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown."""
    outcomes = Counter(entry["outcome"] for entry in entries)
    scored = [entry for entry in entries if entry["outcome"] in ("dense", "crops")]
    wrong = [entry["name"] for entry in scored if not right(entry)]
    usable = len(scored) - len(wrong)
    lead = (
        f"{len(entries)} architectures of torchvision {torchvision.__version__} and timm {timm.__version__}, random "
        f"weights: {outcomes['dense']} scored densely, {outcomes['crops']} by crops, {outcomes['refused']} refused, "
        f"{outcomes['crash']} crashed; {usable / len(entries):.0%} usable. "
        f"Scores that are not the network's own: {', '.join(wrong) or 'none'}.\n\n"
    )
    rows = []
    for entry in entries:
        numbers = ("", "", "")
        note = str(entry["reason"]).partition("\n")[0].replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
        if entry in scored:
            numbers = (str(entry["stride"]), f"{entry['difference']:.0e}", f"{entry['own_error']:.0e}")
        if entry["outcome"] == "dense":
            count = len(entry["level_context"])
            note = f"{entry['level_context'][0]}" + (f" and {count - 1} more" if count > 1 else "") if count else ""
        outcome = entry["outcome"] if entry["name"] not in wrong else "**wrong**"
        rows.append((entry["name"], outcome, entry.get("patch", ""), *numbers, note))
    headings = ("architecture", "scored", "P", "S", "difference", "own error", "averages over the level; why by crops")
    return lead + markdown(headings, rows)


def main() -> None:
    """Go on where the last run stopped, or check the named ones."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", help="torchvision:NAME or timm:NAME; all of the table without any")
    options.add_argument("--again", action="store_true", help="check again the wrong and the failed ones")
    options.add_argument("--jobs", type=int, default=1, help="architectures at a time")
    arguments = options.parse_args()
    if arguments.names:
        for entry in run(arguments.names, arguments.jobs):
            print(json.dumps(entry, indent=1))
        return
    path = RESULTS / "coverage.json"
    known = read_json(path, {"architectures": []})["architectures"]
    entries = {entry["name"]: entry for entry in known if right(entry) or not arguments.again}
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    commit = subprocess.check_output(["git", "rev-parse", "--short=12", "HEAD"], cwd=RESULTS, text=True).strip()
    for entry in run([name for name in names() if name not in entries], arguments.jobs):
        entries[entry["name"]] = entry | {"commit": commit}
        print(entry["name"], entry["outcome"], entry.get("difference", ""), entry["reason"], flush=True)
        done = [entries[name] for name in names() if name in entries]
        write_json(path, {"versions": versions, "architectures": done})
    write_text(RESULTS / "coverage.md", table([entries[name] for name in names()]))


if __name__ == "__main__":
    main()
