"""machine_worker.py: what this machine can do at best, measured with PyTorch: matrix products and reading memory."""

import time

import torch

import worker

GEMM_SIZE = 2048
READ_FLOATS = 1 << 28  # 1 GiB, far more than any cache holds


def fastest(seconds_of, n):
    """The median of each third of n timings, and of these the least: a peak, but none that happened only once."""
    timings = [seconds_of() for _ in range(n)]
    third = max(1, n // 3)
    return min(sorted(timings[i:i + third])[third // 2] for i in range(0, n - third + 1, third))


def timed(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def gemm(n_threads, repetitions):
    torch.set_num_threads(n_threads)
    a, b, c = (torch.randn(GEMM_SIZE, GEMM_SIZE) for _ in range(3))
    timed(lambda: torch.mm(a, b, out=c))
    return {"gflops": 2 * GEMM_SIZE**3 / fastest(lambda: timed(lambda: torch.mm(a, b, out=c)), repetitions) / 1e9}


def read(n_threads, repetitions):
    torch.set_num_threads(n_threads)
    memory = torch.ones(READ_FLOATS)
    timed(memory.sum)
    return {"gb_per_second": 4 * READ_FLOATS / fastest(lambda: timed(memory.sum), repetitions) / 1e9}


if __name__ == "__main__":
    worker.serve({"gemm": gemm, "read": read})
