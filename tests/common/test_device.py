"""Which device and precision are chosen, and which GPU is refused."""

import pytest
import torch

from helpers.common import device

RECENT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "arch_list", "runs"),
    [
        ((6, 0), RECENT, False),  # P100 under a recent build
        ((6, 0), ["sm_50", "sm_60", "sm_70"], True),
        ((7, 5), RECENT, True),  # T4
        ((8, 9), RECENT, True),  # L4: runs sm_80 and sm_86 binaries
        ((9, 0), ["sm_80", "sm_86"], False),  # binaries do not cross major versions
        ((9, 0), ["sm_80", "compute_80"], True),  # but PTX does
        ((9, 0), ["sm_90a"], True),
        ((7, 0), RECENT, False),
        ((12, 0), ["sm_120"], True),
        ((7, 5), [], False),
    ],
)
def test_kernels(capability, arch_list, runs):
    if runs:
        device.require_kernels("a GPU", capability, arch_list)
    else:
        with pytest.raises(
            RuntimeError, match=rf"a GPU has compute capability {capability[0]}\.{capability[1]}.*GPU T4 x2"
        ):
            device.require_kernels("a GPU", capability, arch_list)


def fake_gpu(monkeypatch, name, capability, arch_list):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: arch_list)


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_precision_goes_by_hardware_not_by_emulation(capability, precision, monkeypatch):
    fake_gpu(monkeypatch, "a GPU", capability, RECENT)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # as a T4 says
    assert device.pick_compute() == device.Compute(torch.device("cuda"), "a GPU", precision)
    assert device.pick_compute(amp=False).precision == "fp32"
    assert device.pick_compute(amp="bf16").precision == "bf16"


def test_a_p100_is_reported_before_anything_runs_on_it(monkeypatch):
    fake_gpu(monkeypatch, "Tesla P100-PCIE-16GB", (6, 0), RECENT)
    with pytest.raises(RuntimeError, match=r"Tesla P100-PCIE-16GB.*6\.0.*sm_75"):
        device.pick_compute()


def test_cpu_is_float32_unless_asked():
    compute = device.pick_compute(device="cpu")
    assert (compute.device.type, compute.precision) == ("cpu", "fp32") and "threads" in compute.name
    with compute.autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
    with device.pick_compute("bf16", "cpu").autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


@pytest.mark.parametrize("amp", ["half", 3, "fp8"])
def test_an_unknown_amp_is_refused(amp):
    with pytest.raises(ValueError, match=f"amp={amp!r}"):
        device.pick_compute(amp, "cpu")


@pytest.mark.parametrize(
    ("flags", "precision"), [("fma avx512_bf16", "bf16"), ("amx_bf16 amx_tile", "bf16"), ("fma avx512f", "fp32")]
)
def test_bf16_on_a_cpu_only_where_it_multiplies_it(monkeypatch, flags, precision):
    monkeypatch.setattr(device, "_cpuinfo", lambda: f"model name\t: Abacus\nflags\t\t: fpu {flags} sse\n")
    assert device.pick_compute(True, "cpu", cpu_bf16=True).precision == precision
    assert device.pick_compute(True, "cpu").precision == "fp32"
    assert device.pick_compute(False, "cpu", cpu_bf16=True).precision == "fp32"
    monkeypatch.setattr(device, "_cpuinfo", lambda: "")
    assert device.pick_compute(True, "cpu", cpu_bf16=True).precision == "fp32"


def test_modules_are_compiled_where_that_works(monkeypatch, capsys):
    compiler, network = torch.compile, torch.nn.Sequential(torch.nn.Linear(2, 2))
    monkeypatch.setattr(torch, "compile", lambda f, **given: compiler(f, backend="eager", **given))  # traced, no more
    device.compile_if_possible(network, lambda: network(torch.ones(1, 2)))
    assert network[0]._compiled_call_impl is not None and not capsys.readouterr().out

    def broken(*_, **__):
        raise RuntimeError("no compiler found\nset an option")

    monkeypatch.setattr(torch, "compile", broken)
    device.compile_if_possible(network, lambda: network(torch.ones(1, 2)))
    assert capsys.readouterr().out.endswith("going on without: no compiler found\n")
    assert network(torch.ones(1, 2)).shape == (1, 2)
