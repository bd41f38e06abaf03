"""What a cell will cost: products are counted, on the device that does them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

import qbench
from qbench.checkpoint.folder import bytes_on_disk
from qbench.contracts import Scheme
from qbench.experiment.estimate import OVERHEADS, Rates, _fastest, estimate, measure_rates
from qbench.experiment.plan import add_latencies
from qbench.records import CalibrationSpec, Cell
from tiny_plans import tiny_plan

# A Llama of 8B size on a GPU that reaches 400 Tflop/s.
GPU = Rates(
    device="cuda",
    evaluation=4e14,
    walk=4e14,
    training=4e14,
    parameters=8_030_000_000,
    block_weights=32 * 218_103_808,
    blocks=32,
    widest=14336,
    hidden=4096,
    vocabulary=128256,
    itemsize=2,
)


def cell(method, samples=128, **params):
    calibration = None
    if method not in ("none", "rtn", "alternating"):
        calibration = CalibrationSpec(
            data="text", sha256="0" * 64, samples=samples, length=2048, dtype="bfloat16"
        )
    scheme = None if method == "none" else Scheme(3, 128)
    return Cell(
        model="m",
        revision="1",
        method=method,
        source="1",
        params=params,
        scheme=scheme,
        calibration=calibration,
        dtype="bfloat16",
        seed=0,
        tasks=(),
    )


def seconds(method, rates=GPU, **options):
    return estimate(cell(method, **options), rates, {}).quantize


def test_training_is_six_flops_a_weight_and_token_and_more():
    few, many = (seconds("flexround", epochs=n, batch_size=1) for n in (1, 21))
    tokens = 20 * 112 * 2048  # an eighth of the windows is held out
    products = 6 * GPU.block_weights * tokens / GPU.training
    steps = 20 * 112 * GPU.block_weights * OVERHEADS["cuda"].step
    assert many - few == pytest.approx(products + steps, rel=1e-3)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_twice_the_tokens_are_twice_the_walk(method):
    first, second, third = (seconds(method, samples=n) for n in (128, 256, 384))
    assert third - second == pytest.approx(second - first) and second > first


def test_a_cpu_and_a_gpu_have_their_own_overheads():
    cpu = replace(GPU, device="cpu", evaluation=1e11, walk=1e11, training=1e11)
    assert seconds("alternating", cpu) > 20 * seconds("alternating")
    on_cpu = estimate(cell("gptq"), cpu, {}).peak_bytes
    assert on_cpu > estimate(cell("gptq"), GPU, {}).peak_bytes, "a GPU holds one block"


def test_a_saved_model_takes_about_as_much_of_the_disk_as_is_said(tiny, tmp_path):
    model = tiny(hidden_size=256, intermediate_size=1024)
    rates = measure_rates(model, "cpu", "float32")
    said = estimate(cell("rtn"), rates, {}).disk_bytes
    saved = qbench.quantize(model, "rtn", Scheme(3, 128)).save(tmp_path / "saved")
    assert said == pytest.approx(bytes_on_disk(saved), rel=0.1)
    assert estimate(cell("none"), rates, {}).disk_bytes == 0


def test_a_rate_does_not_count_how_long_a_product_waits_for_a_processor() -> None:
    """A product that mostly sleeps stands for one that other work keeps from the processor."""
    assert _fastest(lambda: time.sleep(0.3), time.process_time) < 0.15


def test_each_format_is_timed_once_and_that_of_a_larger_model_takes_longer(tiny_folder):
    plan = tiny_plan(tiny_folder, "rtn", "gptq", latency=True)
    latencies = {cell.label: plan.modelled[cell.id].latency for cell in plan.cells}
    assert latencies["gptq 2b g32"] == latencies["gptq 4b g32"] < latencies["rtn 4b g32"]
    loading = 1000.0
    for cell in plan.cells:
        plan.modelled[cell.id] = replace(plan.modelled[cell.id], handling=loading)
    add_latencies(plan)
    assert plan.modelled[plan.cells[0].id].latency > 2 * loading > latencies["rtn 4b g32"]
