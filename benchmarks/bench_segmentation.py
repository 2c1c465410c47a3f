"""Training steps of the segmentation network: images per second, ours and segmentation_models_pytorch's DeepLabV3Plus with the same encoder.

    python benchmarks/bench_segmentation.py [--encoder resnest14d] [--size 128] [--batch 4] [--dtype bf16] [--device cpu] [--channels-last] [--json FILE]
    python benchmarks/bench_segmentation.py --encoder resnest101e --size 512 --batch 16 --dtype bf16 --device cuda --channels-last --steps 20
    python benchmarks/bench_segmentation.py --small

A step is forward, cross-entropy, backward and AdamW on random numbers (4 bands, 2 classes) at output stride 8, rates fitted to the size. Ours
is measured twice: as the paper's figure has it (full convolutions, pyramid of a quarter of the encoder's channels), and with the peer's
widths (256) and separable convolutions. The three take turns; the best of all rounds counts, on CUDA with the peak of its memory. On a CPU,
seconds are seconds of processor time, so that a shared machine disturbs less, and one thread is used unless OMP_NUM_THREADS says otherwise.

--small measures the small networks instead (no peer): seconds per step by encoder, zoom, dtype and memory format, tiles of 128 px, batch 8.
"""
import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from isa_nb.segmentation import ResNeStASPP, fitting_rates

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def step(net: nn.Module, size: int, batch: int, dtype: torch.dtype | None, device: str, channels_last: bool) -> Callable[[], None]:
    "A function that makes one training step."
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device, memory_format=layout).train()
    image = torch.randn(batch, 4, size, size, device=device).to(memory_format=layout)
    label = torch.randint(2, (batch, size, size), device=device)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-4)

    def go() -> None:
        optimiser.zero_grad()
        with torch.autocast(device, dtype, enabled=dtype is not None):
            logits = net(image)
        F.cross_entropy(logits.float(), label).backward()
        optimiser.step()

    return go


def seconds(go: Callable[[], None], steps: int, device: str) -> float:
    "Seconds per step: of the processor on a CPU, of the clock on a GPU."
    if device == "cpu":
        start = time.process_time()
        for _ in range(steps):
            go()
        return (time.process_time() - start) / steps / torch.get_num_threads()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        go()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def rounds(cases: dict[str, Callable[[], None]], steps: int, n: int, device: str) -> dict[str, dict]:
    "Best seconds per step of each case, and its peak memory on CUDA; cases take turns."
    out = {}
    for name, go in cases.items():
        go()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            go()
            out[name] = {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)}
        else:
            out[name] = {}
    for _ in range(n):
        for name, go in cases.items():
            out[name]["seconds"] = min(seconds(go, steps, device), out[name].get("seconds", float("inf")))
    return out


def beside_peer(args: argparse.Namespace) -> list[dict]:
    import segmentation_models_pytorch as smp
    rates = fitting_rates(args.size)
    nets = {
        "isa_nb, as the figure": ResNeStASPP(args.encoder, 4, 2, rates=rates),
        "isa_nb, widths of the peer, separable": ResNeStASPP(args.encoder, 4, 2, rates=rates, aspp=256, separable=True),
        "segmentation_models_pytorch DeepLabV3Plus": smp.DeepLabV3Plus(f"tu-{args.encoder}", encoder_weights=None, in_channels=4, classes=2, encoder_output_stride=8,
                                                                       decoder_channels=256, decoder_atrous_rates=rates),
    }
    cases = {name: step(net, args.size, args.batch, DTYPES[args.dtype], args.device, args.channels_last) for name, net in nets.items()}
    got = rounds(cases, args.steps, args.rounds, args.device)
    peer = list(got.values())[-1]["seconds"]
    table = []
    for name, net in nets.items():
        s = got[name]["seconds"]
        weights = sum(p.numel() for p in net.parameters()) / 1e6
        table.append({"case": name, "million_weights": round(weights, 1), "images_per_s": round(args.batch / s, 2), "ratio": round(peer / s, 2), **got[name]})
        memory = f", {got[name]['peak_gb']} GB" if "peak_gb" in got[name] else ""
        print(f"{name:42} {weights:5.1f} M weights {args.batch / s:9.2f} images/s, {peer / s:.2f} x the peer{memory}", flush=True)
    return table


def small(args: argparse.Namespace) -> list[dict]:
    table = []
    for encoder, aspp, zoom in (("resnest14d", 128, 1), ("resnest14d-half", 128, 1), ("resnest14d-half", 64, 1), ("resnest14d-half", 64, 2), ("resnest14d-half", 64, 4),
                                ("resnest14d-quarter", 64, 1), ("resnest14d-quarter", 64, 2), ("resnest14d-quarter", 64, 4)):
        row = {"encoder": encoder, "aspp": aspp, "zoom": zoom}
        for dtype in ("fp32", "bf16"):
            for last in (False, True):
                net = ResNeStASPP(encoder, 4, 2, rates=fitting_rates(128, zoom), aspp=aspp, zoom=zoom)
                go = step(net, 128, 8, DTYPES[dtype], "cpu", last)
                row[dtype + (" channels_last" if last else "")] = round(rounds({"": go}, 1, args.rounds, "cpu")[""]["seconds"], 2)
        table.append(row)
        print("  ".join(f"{k} {v}" for k, v in row.items()), flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="resnest14d", help="a ResNeSt of timm")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--steps", type=int, default=1, help="steps in a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each case")
    parser.add_argument("--small", action="store_true", help="the small networks by themselves, on a CPU")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    torch.manual_seed(0)
    table = small(args) if args.small else beside_peer(args)
    if args.json:
        args.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
