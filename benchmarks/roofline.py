"""How much of the machine's own bfloat16 rate a frozen ResNet50V2 reaches.

    python benchmarks/roofline.py                       # what the product does, batches of 16 to 128
    python benchmarks/roofline.py --modes plain traced fused compiled onnxruntime openvino

The machine's rate is that of `torch.matmul` on square bfloat16 matrices, the best of several sizes, measured in turns
with the networks and with the same threads. A network's operations are counted from its convolutions (2 for each
multiply-add); norms, activations, sums and pooling count nothing, though they take time. Rates are given by the clock
and by processor seconds (of one core): other processes on the machine lower the first and hardly touch the second.

Modes: ``plain`` (PyTorch as it is), ``traced`` (torch.jit, norms folded), ``fused`` (`sonobreast.models.fused`, what
`frozen_forward` takes), ``compiled`` (torch.compile with freezing; needs g++), ``onnxruntime`` (float32: it has no fast
bfloat16 here) and ``openvino`` (bfloat16); the last two only where they are installed, they are no requirement.
Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do

import stand_ins
import torch
from torch import Tensor, nn

from sonobreast.models.forward import frozen_forward, has_bfloat16
from sonobreast.models.fused import fuse
from sonobreast.models.memory import keep_freed_memory
from sonobreast.models.zoo import Backbone, load_backbone

Run = Callable[[Tensor], Any]
SIZE = 224
MATRICES = (512, 1024, 2048, 4096)


def processor() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def once(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds and processor seconds."""
    started, before = time.perf_counter(), processor()
    run()
    return time.perf_counter() - started, processor() - before


def operations(network: nn.Module) -> float:
    """Floating-point operations of the convolutions and linear layers that one image passes."""
    total = 0.0

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1]
            total += 2.0 * out.numel() * module.in_channels // module.groups * kernel
        elif isinstance(module, nn.Linear):
            total += 2.0 * out.numel() * module.in_features

    hooks = [m.register_forward_hook(count) for m in network.modules()]
    with torch.inference_mode():
        network(torch.zeros(1, 3, SIZE, SIZE))
    for hook in hooks:
        hook.remove()
    return total


def matmul_rates(dtype: torch.dtype) -> tuple[float, float]:
    """Operations a second by the clock and by the processor, of the best size."""
    rates = []
    for n in MATRICES:
        a, b = (torch.randn(n, n).to(dtype) for _ in range(2))
        out = torch.empty(n, n, dtype=dtype)
        times = max(1, round(1e11 / (2 * n**3)))
        torch.matmul(a, b, out=out)
        seconds, of_processor = once(lambda a=a, b=b, out=out, k=times: [torch.matmul(a, b, out=out) for _ in range(k)])
        rates.append((2 * n**3 * times / seconds, 2 * n**3 * times / of_processor))
    return max(r[0] for r in rates), max(r[1] for r in rates)


def _onnx(backbone: Backbone) -> bytes:
    stream = io.BytesIO()
    torch.onnx.export(
        backbone,
        (torch.zeros(2, 3, SIZE, SIZE),),
        stream,
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )
    return stream.getvalue()


def prepare(mode: str, backbone: Backbone, dtype: torch.dtype, batch: int) -> Run:
    """The network in one mode: takes float32 images."""
    example = torch.rand(batch, 3, SIZE, SIZE)
    network = copy.deepcopy(backbone).to(dtype=dtype, memory_format=torch.channels_last)
    given: Callable[[Tensor], Tensor] = lambda x: x.to(dtype=dtype, memory_format=torch.channels_last)  # noqa: E731
    if mode == "product":
        return frozen_forward(backbone, example, dtype)
    if mode == "plain":
        return lambda x: network(given(x))
    if mode == "traced":
        traced = torch.jit.freeze(torch.jit.trace(network, given(example), check_trace=False))
        return lambda x: traced(given(x))
    if mode == "fused":
        with torch.inference_mode(False), torch.no_grad():
            fused = fuse(backbone, torch.rand(2, 3, SIZE, SIZE), dtype)
        assert fused is not None
        return lambda x: fused(given(x))
    if mode == "compiled":
        import torch._inductor.config as inductor

        inductor.freezing = True
        torch._dynamo.reset()
        compiled = torch.compile(network)
        return lambda x: compiled(given(x))
    if mode == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(_onnx(backbone), options, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"x": x.numpy()})
    import openvino

    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(_onnx(backbone))
        file.flush()
        core = openvino.Core()
        wanted = "bf16" if dtype == torch.bfloat16 else "f32"
        settings = {"INFERENCE_PRECISION_HINT": wanted, "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}
        model = core.compile_model(core.read_model(file.name), "CPU", settings)
    return lambda x: model(x.numpy())


def profile(run: Run, images: Tensor) -> dict[str, float]:
    """Share of each operator in the time of one call on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        run(images)
    torch.set_num_threads(threads)
    rows = {e.key: float(e.self_cpu_time_total) for e in seen.key_averages()}
    whole = sum(rows.values())
    return {k: round(v / whole, 3) for k, v in sorted(rows.items(), key=lambda kv: -kv[1])[:6]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--modes", nargs="+", default=["product"])
    parser.add_argument("--networks", nargs="+", default=["ResNet50V2", "ResNet50V2 cut", "MobileNetV2"])
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16" if has_bfloat16() else "float32")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    dtype = getattr(torch, given.dtype)
    load = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    profiles: dict[str, dict[str, float]] = {}
    peaks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        for name in given.networks:
            architecture, _, cut = name.partition(" ")
            stand_ins.random_weights(Path(scratch), {"ResNet50V2": "resnetv2_50"}.get(architecture, "mobilenetv2_100"))
            backbone = load_backbone(architecture, scratch)
            if cut:
                backbone.cut = 3  # stem and stages 0 to 2, what the weights at hand cover
            work = operations(backbone)
            for mode in given.modes:
                run, made = None, 0.0
                for batch in given.batches:
                    images = torch.rand(batch, 3, SIZE, SIZE)
                    try:
                        if run is None or mode == "compiled":
                            started = time.perf_counter()
                            run = prepare(mode, backbone, dtype, batch)
                            run(images)
                            made = time.perf_counter() - started
                        run(images)
                    except (ImportError, RuntimeError) as error:
                        print(f"{name:15s} {mode:12s} left out: {str(error).splitlines()[0][:90]}", flush=True)
                        break
                    times = []
                    for _ in range(given.rounds):
                        peaks.append(matmul_rates(dtype))
                        times.append((once(lambda run=run, images=images: run(images)), peaks[-1]))
                    seconds, of_processor = (statistics.median(t[0][k] for t in times) for k in (0, 1))
                    share, share_processor = (
                        statistics.median(work * batch / t[0][k] / t[1][k] for t in times) for k in (0, 1)
                    )
                    rows.append(
                        {
                            "network": name,
                            "mode": mode,
                            "batch": batch,
                            "gflop_an_image": round(work / 1e9, 2),
                            "images_per_s": round(batch / seconds, 1),
                            "images_per_processor_s": round(batch / of_processor, 1),
                            "share": round(share, 3),
                            "share_processor": round(share_processor, 3),
                            "preparation_s": round(made, 1),
                        }
                    )
                    print(
                        f"{name:15s} {mode:12s} batch {batch:3d}: {batch / seconds:6.1f} images/s, "
                        f"{batch / of_processor:6.1f} a processor second, {share:.1%} of the matrix rate by the clock, "
                        f"{share_processor:.1%} by the processor, ready after {made:.1f} s",
                        flush=True,
                    )
                if run is not None and mode not in ("compiled", "onnxruntime", "openvino"):
                    profiles[f"{name} {mode}"] = profile(run, torch.rand(32, 3, SIZE, SIZE))
                    print(f"{name:15s} {mode:12s} {profiles[f'{name} {mode}']}", flush=True)
    whole = [r for r in rows if r["network"] == "ResNet50V2" and r["batch"] == 32]
    print(
        json.dumps(
            {
                "claim": f"share of the machine's own {given.dtype} matrix rate, ResNet50V2, batch 32",
                "ratio": whole[0]["share"] if whole else None,
                "ratio_processor": whole[0]["share_processor"] if whole else None,
                "matrix_tflops": round(statistics.median(p[0] for p in peaks) / 1e12, 3),
                "matrix_tflops_a_processor_second": round(statistics.median(p[1] for p in peaks) / 1e12, 3),
                "threads": given.threads,
                "load_before": round(load, 1),
                "rows": rows,
                "profiles": profiles,
            }
        )
    )


if __name__ == "__main__":
    main()
