"""machine_worker.py: what this machine can do at best, measured with PyTorch: matrix products and reading memory.

The products are taken from both libraries that PyTorch brings, since either alone can understate the machine: MKL, which it uses
for f32, runs AVX2 code on AMD's processors with AVX-512; oneDNN does not.
"""

import time

import torch

import worker

GEMM_SIZE = 2048
READ_FLOATS = 1 << 28  # 1 GiB, far more than any cache holds


def fastest(function, repetitions):
    """Timings in thirds; the median of each, and of these the least: a peak, but none that happened only once."""
    timings, third = [], max(1, repetitions // 3)
    function()
    for _ in range(repetitions):
        begin = time.perf_counter()
        function()
        timings.append(time.perf_counter() - begin)
    return min(sorted(timings[i:i + third])[third // 2] for i in range(0, repetitions - third + 1, third))


def gemm(n_threads, repetitions):
    """-> {"mkl": GFLOP/s, "onednn": GFLOP/s}; the first is what PyTorch's own operations reach"""
    torch.set_num_threads(n_threads)
    a, b = torch.rand(GEMM_SIZE, GEMM_SIZE), torch.rand(GEMM_SIZE, GEMM_SIZE)
    products = {"mkl": lambda: torch.mm(a, b.T), "onednn": lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")}
    if not torch.allclose(products["mkl"](), products["onednn"](), rtol=1e-4):
        raise RuntimeError("MKL's product and oneDNN's differ")
    return {name: 2 * GEMM_SIZE**3 / fastest(product, repetitions) / 1e9 for name, product in products.items()}


def read(n_threads, repetitions):
    torch.set_num_threads(n_threads)
    return {"gb_per_second": 4 * READ_FLOATS / fastest(torch.ones(READ_FLOATS).sum, repetitions) / 1e9}


if __name__ == "__main__":
    worker.serve({"gemm": gemm, "read": read})
