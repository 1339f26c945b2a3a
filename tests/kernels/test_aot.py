"""The ahead-of-time compiler: every launch configuration, within its budget."""

from __future__ import annotations

import dataclasses
import os

import pytest

pytest.importorskip("triton", reason="needs the triton package, which is for Linux only")

from densescore_kernels.aot import (
    Report,
    all_configs,
    available_targets,
    budgets,
    compile_all,
    main,
    read_amd,
    read_nvidia,
    table,
)

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled"
)

GOOD = Report("spread", "fp32", "sm_90", True, 40, 0, 4096, wide_loads=4, loads=9)


def test_every_launch_configuration_compiles_within_its_budget() -> None:
    targets = available_targets()
    assert {"sm_80", "sm_90", "sm_100"} <= set(targets)
    reports = compile_all(targets, workers=2)
    assert len(reports) == len(targets) * len(all_configs())
    assert {report.kernel for report in reports} == set(budgets())
    assert all(report.registers > 8 and report.loads for report in reports)  # a parser that reads nothing would pass
    assert [fault for report in reports for fault in report.faults()] == []
    assert len(table(reports, every=True).splitlines()) == 2 + len(reports)


def test_every_excess_is_a_fault() -> None:
    assert GOOD.faults() == []
    for change, message in (
        ({"spills": 4}, "spills 4, expected none"),
        ({"registers": 99}, "99 registers, expected at most 64"),
        ({"shared": 9000}, "9000 bytes of shared memory, expected at most 8192"),
        ({"wide_loads": 0}, "no 128-bit load, expected one"),
    ):
        assert message in dataclasses.replace(GOOD, **change).faults()[0]  # type: ignore[arg-type]


def test_an_excess_ends_the_command_with_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import densescore_kernels.aot as aot

    reports = [GOOD]
    monkeypatch.setattr(aot, "compile_all", lambda targets, workers: reports)
    assert main(["--target", "sm_90"]) == 0
    assert "| spread | sm_90  | 128-bit | 1       | 40 " in capsys.readouterr().out
    reports.append(dataclasses.replace(GOOD, spills=8))
    assert main(["--target", "sm_90", "--json"]) == 1
    assert "sm_90 spread [fp32]: spills 8" in capsys.readouterr().err


def test_what_the_compilers_print_is_read() -> None:
    log = "ptxas info : Used 42 registers\n 8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads"
    ptx = "@%p1 ld.global.v4.b32 { %r1 };\n ld.global.L1::evict_first.b32 %r2;\n st.global.v4.b32 [%r3];"
    assert read_nvidia(log, ptx) == {"registers": 42, "spills": 16, "wide_loads": 1, "loads": 2}
    notes = ".vgpr_count: 33\n.vgpr_spill_count: 2\n.sgpr_spill_count: 0\n"
    notes += " global_load_dwordx4 v[0:3]\n buffer_load_dword v4"
    assert read_amd(notes) == {"registers": 33, "spills": 2, "wide_loads": 1, "loads": 2}
    with pytest.raises(RuntimeError, match="ptxas printed no register count"):
        read_nvidia("", ptx)
