"""machine_worker.py: what this machine can do at best: matrix products, by whichever library here is fastest, and reading memory.

PyTorch alone would understate it: its products are MKL's, which on AMD's processors with AVX-512 run AVX2 code.
"""

import ctypes
import time

import numpy as np
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


def torch_product(a, b, out, n_threads):
    torch.set_num_threads(n_threads)
    a, b, out = (torch.from_numpy(matrix) for matrix in (a, b, out))
    return lambda: torch.mm(a, b, out=out)


def onednn_product(a, b, out, n_threads):
    """The library that softprompt multiplies with; None where it is not installed as a shared one."""
    try:
        dnnl, openmp = ctypes.CDLL("libdnnl.so"), ctypes.CDLL("libgomp.so.1")
    except OSError:
        return None
    openmp.omp_set_num_threads(n_threads)
    size, plain = ctypes.c_int64(GEMM_SIZE), ctypes.c_char(b"N")
    pa, pb, pout = (matrix.ctypes.data_as(ctypes.c_void_p) for matrix in (a, b, out))
    one, zero = ctypes.c_float(1), ctypes.c_float(0)
    return lambda: dnnl.dnnl_sgemm(plain, plain, size, size, size, one, pa, size, pb, size, zero, pout, size)


def gemm(n_threads, repetitions):
    """-> {"torch": GFLOP/s, "onednn": GFLOP/s or null}"""
    rng, rates = np.random.default_rng(1), {}
    a, b, out = (rng.random((GEMM_SIZE, GEMM_SIZE), np.float32) for _ in range(3))
    expected = a[7] @ b
    for name, make in (("torch", torch_product), ("onednn", onednn_product)):
        product = make(a, b, out, n_threads)
        rates[name] = product and 2 * GEMM_SIZE**3 / fastest(product, repetitions) / 1e9
        if product and not np.allclose(out[7], expected, rtol=1e-4):
            raise RuntimeError(f"{name}'s product is wrong")
    return rates


def read(n_threads, repetitions):
    torch.set_num_threads(n_threads)
    return {"gb_per_second": 4 * READ_FLOATS / fastest(torch.ones(READ_FLOATS).sum, repetitions) / 1e9}


if __name__ == "__main__":
    worker.serve({"gemm": gemm, "read": read})
