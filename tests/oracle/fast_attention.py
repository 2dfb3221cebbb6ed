"""Attention in almost linear time against torch's scaled_dot_product_attention in f64: every head of a layer through its strides, within
the certificates; with values random and the worst (the sign of the difference between the two weightings of a query).

    python tests/oracle/fast_attention.py
"""
import ctypes as c

import numpy as np
import torch

import softprompt as sp

lib = sp.lib


class Options(c.Structure):
    _fields_ = [("epsilon", c.c_double), ("degree", c.c_size_t), ("max_degree", c.c_size_t), ("range", c.c_double),
                ("max_bytes", c.c_uint64)]


class Head(c.Structure):
    _fields_ = [(x, c.c_void_p) for x in "qkv"] + [(x, c.c_size_t) for x in ("n_queries", "n_keys", "d", "d_v", "ldq", "ldk", "ldv",
                                                                              "ldo")] + [("scale", c.c_float)]


class Certificate(c.Structure):
    _fields_ = [(x, c.c_size_t) for x in ("n_queries", "n_keys", "n_exact", "degree", "n_features")] + [
        (x, c.c_double) for x in ("range", "max_range", "epsilon", "polynomial_bound", "rounding_bound")]


lib.sp_fast_free.argtypes, lib.sp_fast_free.restype = [c.c_void_p], None


def attend(q, k, v, scale, **options):
    """(n, heads, d) arrays; returns the output and each head's certificate."""
    fast, out, certificates = c.c_void_p(), np.empty(q.shape[:2] + v.shape[2:], np.float32), []
    sp.check(lib.sp_fast_create(c.byref(fast), c.byref(Options(**options))))
    for h in range(q.shape[1]):
        head = Head(*(x[:, h].ctypes.data for x in (q, k, v)), len(q), len(k), q.shape[2], v.shape[2],
                    *(x.shape[1] * x.shape[2] for x in (q, k, v, out)), scale)
        certificate = Certificate()
        sp.check(lib.sp_fast_attention(c.c_void_p(out[:, h].ctypes.data), c.byref(certificate), fast, c.byref(head)))
        certificates.append(certificate)
    lib.sp_fast_free(fast)
    return out, certificates


def reference(q, k, v, scale):
    heads = [torch.from_numpy(x).double().transpose(0, 1) for x in (q, k, v)]
    return torch.nn.functional.scaled_dot_product_attention(*heads, scale=scale).transpose(0, 1).numpy()


def main():
    rng = np.random.default_rng(1)
    worst, n_heads = 0, 0
    for d, d_v, degree, reach in ((8, 8, 4, 1.1), (16, 16, 3, 0.6), (64, 64, 2, 0.25), (4, 16, 7, 2.5), (1, 2, 12, 6), (8, 8, 0, 0.5)):
        q, k = (rng.standard_normal((n, 3, d)).astype(np.float32) for n in (300, 1500))
        v = rng.uniform(-1, 1, (1500, 3, d_v)).astype(np.float32)
        k += rng.standard_normal((3, d)).astype(np.float32)  # a common offset, which centring takes away
        centred = k - k.mean(0)
        scale = float(np.float32(reach * 0.8 / (np.linalg.norm(q, axis=2).max() * np.linalg.norm(centred, axis=2).max())))
        scores = scale * np.einsum("hd,nhd->nh", q[0].astype(float), k.astype(float))
        v[:, :, 0] = np.where(scores > np.median(scores, 0), 1, -1)  # values that follow the keys
        out, certificates = attend(q, k, v, scale, degree=degree)
        want = reference(q, k, v, scale)
        for h, certificate in enumerate(certificates):
            bound = certificate.polynomial_bound + certificate.rounding_bound
            off = np.abs(out[:, h] - want[:, h]).max()
            assert off <= bound, f"d {d}, degree {degree}, head {h}: {off} off, certified {bound}"
            if degree:  # else it is chosen by cost, and some queries may be exact
                assert certificate.n_exact == 0 and certificate.degree == degree
            worst, n_heads = max(worst, off / bound), n_heads + 1
    print(f"fast_attention: {n_heads} heads within their certificates, at most {worst:.3f} of them; torch in f64")


if __name__ == "__main__":
    main()
