"""Compile every launch configuration of every kernel, without a GPU, and check it against its budget.

``python -m densescore_kernels.aot`` prints a table of registers, spills, shared memory and load widths, and exits with
1 when a configuration spills, exceeds its budget, or lacks the 128-bit loads that its alignment allows. It takes about
a minute on two cores and needs no GPU: the compilers and ptxas come with the triton package.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from densescore_kernels.launch import Budget, Config, Configs

TARGETS = {
    "sm_80": ("cuda", 80, 32),  # A100
    "sm_90": ("cuda", 90, 32),  # H100
    "sm_100": ("cuda", 100, 32),  # B200
    "gfx942": ("hip", "gfx942", 64),  # MI300
}


OPERATIONS = (
    "depthwise",
    "image_levels",
    "power_mean",
    "response_map",
)  # folders, each with a triton.py that lists its CONFIGS


@dataclass(frozen=True)
class Report:
    """The compiler's report on one launch configuration for one target."""

    kernel: str
    config: str
    target: str
    aligned: bool  # rows are aligned: 128-bit loads are possible
    registers: int  # for each thread
    spills: int  # bytes (NVIDIA) or registers (AMD) that did not fit
    shared: int  # bytes
    wide_loads: int  # 128-bit loads from global memory in the code
    loads: int  # all loads from global memory in the code

    def faults(self) -> list[str]:
        """Excesses over the budget."""
        budget = budgets()[self.kernel]
        registers = budget.wide if self.aligned else budget.single
        faults = []
        if self.spills:
            faults.append(f"spills {self.spills}, expected none")
        if self.registers > registers:
            faults.append(f"{self.registers} registers, expected at most {registers}")
        if self.shared > budget.shared:
            faults.append(f"{self.shared} bytes of shared memory, expected at most {budget.shared}")
        if self.aligned and not self.wide_loads:
            faults.append("no 128-bit load, expected one: its rows are aligned")
        return [f"{self.target} {self.kernel} [{self.config}]: {fault}" for fault in faults]


def all_configs() -> list[Config]:
    """Every launch configuration of the library, in a fixed order."""
    return [config for configs in _operations() for config in configs.by_key.values()]


def budgets() -> dict[str, Budget]:
    """Budget of each kernel by its name."""
    return {name: budget for configs in _operations() for name, budget in configs.budgets.items()}


def _operations() -> list[Configs]:
    return [import_module(f"densescore_kernels.{name}.triton").CONFIGS for name in OPERATIONS]


def compile_config(number: int, target: str) -> Report:
    """Compile launch configuration ``number`` of :func:`all_configs` for ``target``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # Compile
    config, warp = all_configs()[number], TARGETS[target][2]
    constants = dict(config.constants)
    names = config.kernel.arg_names
    signature = dict(zip(names, config.arguments, strict=False)) | dict.fromkeys(constants, "constexpr")
    aligned = {(at,): [["tt.divisibility", 16]] for at, kind in enumerate(config.arguments) if kind.startswith("*")}
    source = ASTSource(
        config.kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned
    )
    options = {"num_warps": config.threads // warp}
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)

    # Read what came out
    pointers = "/".join(kind[1:] for kind in config.arguments if kind in ("*fp32", "*fp16", "*bf16"))
    kernel = config.kernel.__name__
    common: dict[str, Any] = {
        "kernel": kernel,
        "config": f"{pointers} " + " ".join(f"{name}={value}" for name, value in constants.items()),
        "target": target,
        "aligned": constants.get("VEC", 1) > 1 or budgets()[kernel].always_wide,
        "shared": compiled.metadata.shared,
    }
    if "ptx" in compiled.asm:
        return Report(**common, **read_nvidia(log.getvalue(), compiled.asm["ptx"]))
    return Report(**common, **read_amd(compiled.asm["amdgcn"]))


def read_nvidia(log: str, ptx: str) -> dict[str, Any]:
    """Registers and spills from the log of ptxas, load widths from the PTX."""
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    used = re.search(r"Used (\d+) registers", log)
    if used is None or not spills:
        raise RuntimeError(f"ptxas printed no register count, but: {log!r}")
    loads = re.findall(r"\bld\.global(?:\.\S+)?", ptx)
    wide = [load for load in loads if re.search(r"\.v4\.[bfu]32|\.v2\.[bfu]64|\.v8\.", load)]
    return {
        "registers": int(used[1]),
        "spills": sum(map(int, spills)),
        "wide_loads": len(wide),
        "loads": len(loads),
    }


def read_amd(assembly: str) -> dict[str, Any]:
    """Registers, spills and load widths from the assembly's notes."""

    def note(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", assembly)
        if match is None:
            raise RuntimeError(f"the assembly says nothing about {name}")
        return int(match[1])

    loads = re.findall(r"\b(?:global|buffer|flat)_load_\w+", assembly)
    return {
        "registers": note("vgpr_count"),
        "spills": note("vgpr_spill_count") + note("sgpr_spill_count"),
        "wide_loads": sum(load.endswith("dwordx4") for load in loads),
        "loads": len(loads),
    }


def compile_all(targets: Sequence[str], workers: int) -> list[Report]:
    """Compile all launch configurations for all targets, in worker processes, with an empty cache."""
    jobs = [(number, target) for target in targets for number in range(len(all_configs()))]
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare, initargs=(cache,)) as pool,
    ):
        return list(pool.map(compile_config, *zip(*jobs, strict=True), chunksize=8))


def _prepare(cache: str) -> None:
    os.environ.update(TRITON_CACHE_DIR=cache, TRITON_DUMP_PTXAS_LOG="1")


def available_targets() -> list[str]:
    """Targets that the installed triton can compile for."""
    from triton.backends import backends

    return [name for name, target in TARGETS.items() if {"cuda": "nvidia", "hip": "amd"}[str(target[0])] in backends]


def table(reports: Iterable[Report], every: bool) -> str:
    """A table with a line for each configuration, or with the largest numbers of each kernel and target."""
    groups: dict[tuple[str, ...], list[Report]] = {}
    for report in reports:
        width = "128-bit" if report.aligned else "single"
        key = (report.kernel, report.target, width, report.config if every else "")
        groups.setdefault(key, []).append(report)
    lines = [("kernel", "target", "loads", "configs", "registers", "spills", "shared", "128-bit loads", "budget")]
    for (kernel, target, width, config), group in groups.items():
        budget = budgets()[kernel]
        registers = budget.wide if group[0].aligned else budget.single
        fewest = min(group, key=lambda report: report.wide_loads)
        lines.append(
            (
                kernel,
                target,
                width,
                config or str(len(group)),
                str(max(report.registers for report in group)),
                str(max(report.spills for report in group)),
                str(max(report.shared for report in group)),
                f"{fewest.wide_loads} of {fewest.loads}",
                f"{registers} registers, {budget.shared} B",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([rows[0], rule, *rows[1:]])


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m densescore_kernels.aot", description=__doc__)
    parser.add_argument(
        "--target", action="append", choices=tuple(TARGETS), help="default: all that triton can compile"
    )
    parser.add_argument(
        "--every", action="store_true", help="a line for each configuration, instead of the largest numbers"
    )
    parser.add_argument("--json", action="store_true", help="print the reports as JSON")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes to compile in")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled; unset it", file=sys.stderr)
        return 2
    reports = compile_all(options.target or available_targets(), options.workers)
    faults = [fault for report in reports for fault in report.faults()]
    print(
        json.dumps([asdict(report) for report in reports], indent=1) if options.json else table(reports, options.every)
    )
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(reports)} compiled, {len(faults)} over budget", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
