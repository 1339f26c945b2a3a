"""Compile every kernel form that can be launched, without a GPU, and check it against a budget.

``python -m densescore_kernels.aot`` prints a table of registers, spills, shared memory and load widths, and exits with
1 when a form spills, exceeds its budget, or lacks the 128-bit loads that its alignment allows. It takes about a minute
on two cores and needs no GPU: the compilers and ptxas come with the triton package.
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
from typing import Any, NamedTuple

TARGETS = {
    "sm_80": ("cuda", 80, 32),  # A100
    "sm_90": ("cuda", 90, 32),  # H100
    "sm_100": ("cuda", 100, 32),  # B200
    "gfx942": ("hip", "gfx942", 64),  # MI300
}


class Budget(NamedTuple):
    """The most that a form of a kernel may use, on any target."""

    wide: int  # registers a thread, in forms with 128-bit loads
    single: int  # registers a thread, in forms whose rows are not aligned
    shared: int  # bytes of shared memory


# 65,536 registers on a multiprocessor: 64 a thread leave room for 1,024 threads, 128 for 512.
BUDGETS = {
    "power_sums": Budget(48, 64, 2048),
    "power_grads": Budget(48, 72, 1024),
    "add_chunks": Budget(48, 56, 4096),
    "softmax_sums": Budget(64, 112, 8192),
    "softmax_grads": Budget(64, 120, 8192),
    "long_softmax_sums": Budget(48, 56, 8192),
    "long_softmax_grads": Budget(64, 80, 8192),
    "window_sums": Budget(48, 64, 4096),
    "spread": Budget(64, 64, 8192),
}


@dataclass(frozen=True)
class Report:
    """The compiler's report on one form for one target."""

    kernel: str
    form: str
    target: str
    aligned: bool  # rows are aligned: 128-bit loads are possible
    registers: int  # for each thread
    spills: int  # bytes (NVIDIA) or registers (AMD) that did not fit
    shared: int  # bytes
    wide_loads: int  # 128-bit loads from global memory in the code
    loads: int  # all loads from global memory in the code

    def faults(self) -> list[str]:
        """What breaks the budget; empty when nothing does."""
        budget = BUDGETS[self.kernel]
        registers = budget.wide if self.aligned else budget.single
        found = []
        if self.spills:
            found.append(f"spills {self.spills}, expected none")
        if self.registers > registers:
            found.append(f"{self.registers} registers, expected at most {registers}")
        if self.shared > budget.shared:
            found.append(f"{self.shared} bytes of shared memory, expected at most {budget.shared}")
        if self.aligned and not self.wide_loads:
            found.append("no 128-bit load, expected one: its rows are aligned")
        return [f"{self.target} {self.kernel} [{self.form}]: {fault}" for fault in found]


def all_forms() -> list[Any]:
    """Every form that the library can launch, in a fixed order."""
    from densescore_kernels.power_mean import triton_launch as power_mean
    from densescore_kernels.response_map import triton_launch as response_map

    return [*power_mean.FORMS.listed.values(), *response_map.FORMS.listed.values()]


def compile_form(number: int, target: str) -> Report:
    """Compile form ``number`` of :func:`all_forms` for ``target``, and read what came out."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    form, lanes = all_forms()[number], TARGETS[target][2]
    constants = dict(form.constants)
    names = form.kernel.arg_names
    signature = dict(zip(names, form.arguments, strict=False)) | dict.fromkeys(constants, "constexpr")
    aligned = {(at,): [["tt.divisibility", 16]] for at, kind in enumerate(form.arguments) if kind.startswith("*")}
    source = ASTSource(
        form.kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned
    )
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"num_warps": form.warps(lanes)})
    pointers = "/".join(kind[1:] for kind in form.arguments if kind in ("*fp32", "*fp16", "*bf16"))
    text = f"{pointers} " + " ".join(f"{name}={value}" for name, value in constants.items())
    common: dict[str, Any] = {
        "kernel": form.kernel.__name__,
        "form": text,
        "target": target,
        "aligned": constants["VEC"] > 1 or form.kernel.__name__ == "spread",  # windows are padded to whole vectors
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
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        if found is None:
            raise RuntimeError(f"the assembly says nothing about {name}")
        return int(found[1])

    loads = re.findall(r"\b(?:global|buffer|flat)_load_\w+", assembly)
    return {
        "registers": note("vgpr_count"),
        "spills": note("vgpr_spill_count") + note("sgpr_spill_count"),
        "wide_loads": sum(load.endswith("dwordx4") for load in loads),
        "loads": len(loads),
    }


def compile_all(targets: Sequence[str], workers: int) -> list[Report]:
    """Compile all forms for all targets, in processes of their own, with an empty cache."""
    jobs = [(number, target) for target in targets for number in range(len(all_forms()))]
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as cache,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare, initargs=(cache,)) as pool,
    ):
        return list(pool.map(compile_form, *zip(*jobs, strict=True), chunksize=8))


def _prepare(cache: str) -> None:
    os.environ.update(TRITON_CACHE_DIR=cache, TRITON_DUMP_PTXAS_LOG="1")


def available_targets() -> list[str]:
    """Targets that the installed triton has a compiler for."""
    from triton.backends import backends

    return [name for name, target in TARGETS.items() if {"cuda": "nvidia", "hip": "amd"}[str(target[0])] in backends]


def table(reports: Iterable[Report], every: bool) -> str:
    """A table with a line for each form, or with the largest number of each kernel and target."""
    groups: dict[tuple[str, ...], list[Report]] = {}
    for report in reports:
        width = "128-bit" if report.aligned else "single"
        key = (report.kernel, report.target, width, report.form if every else "")
        groups.setdefault(key, []).append(report)
    lines = [("kernel", "target", "loads", "forms", "registers", "spills", "shared", "128-bit loads", "budget")]
    for (kernel, target, width, form), group in groups.items():
        budget = BUDGETS[kernel]
        registers = budget.wide if group[0].aligned else budget.single
        fewest = min(group, key=lambda report: report.wide_loads)
        lines.append(
            (
                kernel,
                target,
                width,
                form or str(len(group)),
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
    parser.add_argument("--every", action="store_true", help="a line for each form, instead of the largest numbers")
    parser.add_argument("--json", action="store_true", help="print the reports as JSON")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes to compile in")
    chosen = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("TRITON_INTERPRET=1 is set: interpreted kernels cannot be compiled; unset it", file=sys.stderr)
        return 2
    reports = compile_all(chosen.target or available_targets(), chosen.workers)
    faults = [fault for report in reports for fault in report.faults()]
    print(json.dumps([asdict(report) for report in reports], indent=1) if chosen.json else table(reports, chosen.every))
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(reports)} compiled, {len(faults)} over budget", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
