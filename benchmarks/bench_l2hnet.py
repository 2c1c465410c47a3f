"""Training steps of the low-to-high network: images per second, ours beside a plain PyTorch implementation of the same blocks in fp32.

    python benchmarks/bench_l2hnet.py [--size 64] [--batch 8] [--width 32] [--device cpu] [--json FILE]
    python benchmarks/bench_l2hnet.py --size 224 --batch 16 --width 64 --device cuda --steps 20 --compile

A step is forward, cross-entropy, backward and AdamW on random numbers (4 bands, 11 classes). The plain network is written down here from
the published description, with the memory order and precision that PyTorch has by itself; it has as many weights as ours, and gives the
same answer with the same weights, which is checked first. Ours is measured as `learning.plan` would run it and in each combination of
fp32/bf16 and memory order, with the low-to-high loss as well, and with --compile compiled too. All take turns; the best of all rounds
counts. On CUDA the peak of its memory is told; on a CPU seconds are seconds of processor time, so that a shared machine disturbs less,
and memory is what autograd keeps for the backward pass. One thread on a CPU unless OMP_NUM_THREADS says otherwise.
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

from isa_nb.l2hnet import L2HNet, LowToHighLoss
from isa_nb.learning import plan


class PlainBlock(nn.Module):
    def __init__(self, w: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(w, w, 1), nn.BatchNorm2d(w)
        self.conv3, self.bn3 = nn.Conv2d(w, w // 2, 3, padding=1), nn.BatchNorm2d(w // 2)
        self.conv5, self.bn5 = nn.Conv2d(w, w // 4, 5, padding=2), nn.BatchNorm2d(w // 4)
        self.conv, self.bn = nn.Conv2d(7 * w // 4, w, 1), nn.BatchNorm2d(w)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one, three, five = F.relu(self.bn1(self.conv1(x))), F.relu(self.bn3(self.conv3(x))), F.relu(self.bn5(self.conv5(x)))
        return x + F.relu(self.bn(self.conv(torch.cat([one, three, five], 1))))


def plain(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, width, 3, padding=1), *(PlainBlock(width) for _ in range(5)), nn.Conv2d(width, 11, 1))


def same(width: int) -> None:
    "Check that both networks say the same with the same weights."
    ours, theirs, x = L2HNet(width=width), plain(width), torch.randn(2, 4, 32, 32)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def step(net: nn.Module, args: argparse.Namespace, bf16: bool, last: bool, loss: LowToHighLoss | None = None, compiled: bool = False) -> Callable[[], float]:
    "A function that makes one training step, and gives the bytes that autograd kept."
    layout = torch.channels_last if last else torch.contiguous_format
    net = net.to(args.device, memory_format=layout).train()
    image = torch.randn(args.batch, 4, args.size, args.size, device=args.device).to(memory_format=layout)
    label = torch.randint(1, 12, (args.batch, args.size, args.size), device=args.device)
    optimiser, seen = torch.optim.AdamW(net.parameters(), 1e-3), []
    if loss is not None:
        net.classifier.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    run = torch.compile(net) if compiled else net

    def go(count: bool = False) -> float:
        kept: dict[int, int] = {}
        optimiser.zero_grad()
        seen.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) if count else None, t)[1], lambda t: t):
            with torch.autocast(args.device, torch.bfloat16, enabled=bf16):
                logits = run(image)
            value = F.cross_entropy(logits.float(), label - 1) if loss is None else loss(logits, label, None, seen[0])
        value.backward()
        optimiser.step()
        return float(sum(kept.values()))

    return go


def seconds(go: Callable[[], float], steps: int, device: str) -> float:
    "Seconds per step: of the processor on a CPU, of the clock on a GPU."
    clock = time.perf_counter if device == "cuda" else time.process_time
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    for _ in range(steps):
        go()
    if device == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / steps / (1 if device == "cuda" else torch.get_num_threads())


def memory(go: Callable[[], float], device: str) -> float:
    "GB of a step: the peak on CUDA, what autograd keeps on a CPU."
    if device != "cuda":
        return go(count=True) / 1e9
    torch.cuda.reset_peak_memory_stats()
    go()
    return torch.cuda.max_memory_allocated() / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="ours compiled as well")
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each case")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    torch.manual_seed(0)
    same(args.width)
    ours, chosen = lambda: L2HNet(width=args.width), plan(args.device)
    cases = {"plain PyTorch, fp32": step(plain(args.width), args, False, False)}
    for bf16 in (False, True):
        for last in (False, True):
            cases[f"isa_nb, {'bf16' if bf16 else 'fp32'}, channels {'last' if last else 'first'}"] = step(ours(), args, bf16, last)
    cases["the same with the low-to-high loss"] = step(ours(), args, True, True, LowToHighLoss(tau=0.12, warmup=0))
    if args.compile:
        cases["isa_nb, bf16, channels last, compiled"] = step(ours(), args, True, True, compiled=True)
    best = dict.fromkeys(cases, float("inf"))
    for go in cases.values():
        go()
    kept = {name: memory(go, args.device) for name, go in cases.items()}
    for _ in range(args.rounds):
        for name, go in cases.items():
            best[name] = min(best[name], seconds(go, args.steps, args.device))
    peer, table = best["plain PyTorch, fp32"], []
    print(f"{args.batch} images of {args.size} px, width {args.width}, {args.device}; learning.plan takes {chosen.precision}, channels {'last' if chosen.channels_last else 'first'}")
    for name, s in best.items():
        table.append({"case": name, "images_per_s": args.batch / s, "ratio": peer / s, "gb": kept[name]})
        print(f"{name:42} {args.batch / s:8.1f} images/s, {peer / s:.2f} x plain, {kept[name]:.3f} GB")
    if args.json:
        args.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
