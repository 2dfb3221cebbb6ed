"""sdpa.py: the exact kernel that attention in almost linear time is measured against, beside torch's scaled_dot_product_attention:
processor time of one thread, interleaved. A JSON line a row: d n causal cpu_seconds_exact cpu_seconds_torch ratio (torch / exact).

    python bench/sdpa.py [LOG2_N]        with torch, such as the tests' environment; SOFTPROMPT_LIB names the library
"""
import ctypes as c
import json
import os
import statistics
import sys
import time

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PASSES = 7


class Head(c.Structure):
    """sp_attention_head"""
    _fields_ = [(x, c.c_void_p) for x in "qkv"] + [(x, c.c_size_t) for x in ("n_queries", "n_keys", "d", "d_v", "ldq", "ldk", "ldv",
                                                                              "ldo")] + [("scale", c.c_float), ("causal", c.c_bool)]


class Options(c.Structure):
    """sp_fast_options"""
    _fields_ = [("epsilon", c.c_double), ("degree", c.c_size_t), ("max_degree", c.c_size_t), ("range", c.c_double),
                ("max_bytes", c.c_uint64), ("n_threads", c.c_int)]


def seconds_of(call):
    begin = time.process_time()
    call()
    return time.process_time() - begin


def measure(lib, fast, d, n, causal):
    q, k, v, out = (torch.randn(1, 1, n, d) for _ in range(4))
    head = Head(*(x.data_ptr() for x in (q, k, v)), n, n, d, d, 0, 0, 0, 0, 0, causal)

    def ours():
        assert lib.sp_exact_attention(c.c_void_p(out.data_ptr()), fast, c.byref(head)) == 0

    def torchs():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

    ours()
    difference = (out - torchs()).abs().max().item()
    assert difference < 1e-4, difference
    pairs = [(seconds_of(ours), seconds_of(torchs)) for _ in range(PASSES)]
    print(json.dumps({"d": d, "n": n, "causal": causal, "cpu_seconds_exact": statistics.median(p[0] for p in pairs),
                      "cpu_seconds_torch": statistics.median(p[1] for p in pairs),
                      "ratio": round(statistics.median(p[1] / p[0] for p in pairs), 3)}), flush=True)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(1)
    lib = c.CDLL(os.environ.get("SOFTPROMPT_LIB") or os.path.join(ROOT, "build", "libsoftprompt.so"))
    fast = c.c_void_p()
    assert lib.sp_fast_create(c.byref(fast), c.byref(Options(n_threads=1))) == 0
    n = 1 << int(sys.argv[1] if len(sys.argv) > 1 else 13)
    for d in (8, 16, 64):
        for causal in (False, True):
            measure(lib, fast, d, n, causal)


if __name__ == "__main__":
    main()
