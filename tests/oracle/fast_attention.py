"""Attention in almost linear time against torch's scaled_dot_product_attention in f64: every head of a layer through its strides, within
the certificates; with values random and the worst (the sign of the difference between the two weightings of a query). And states: keys of
low rank as moments, half of them made at once and half appended, beside other keys that share the softmax.

    python tests/oracle/fast_attention.py
"""
import ctypes as c

import numpy as np
import torch

import softprompt as sp

lib = sp.lib


class Options(c.Structure):
    _fields_ = [("epsilon", c.c_double), ("degree", c.c_size_t), ("max_degree", c.c_size_t), ("range", c.c_double),
                ("max_bytes", c.c_uint64), ("n_threads", c.c_int)]


class Head(c.Structure):
    _fields_ = [(x, c.c_void_p) for x in "qkv"] + [(x, c.c_size_t) for x in ("n_queries", "n_keys", "d", "d_v", "ldq", "ldk", "ldv",
                                                                              "ldo")] + [("scale", c.c_float), ("causal", c.c_bool)]


class Certificate(c.Structure):
    _fields_ = [(x, c.c_size_t) for x in ("n_queries", "n_keys", "n_exact", "degree", "n_features")] + [
        (x, c.c_double) for x in ("range", "max_range", "epsilon", "polynomial_bound", "rounding_bound")] + [
        ("n_beyond", c.c_size_t), ("weights_bound", c.c_double), ("n_exact_keys", c.c_size_t), ("rank", c.c_size_t), ("remainder", c.c_double)]


class StateOptions(c.Structure):
    _fields_ = [("epsilon", c.c_double), ("query_norm", c.c_double), ("range", c.c_double), ("degree", c.c_size_t), ("max_degree", c.c_size_t),
                ("key_radius", c.c_double), ("rank_tolerance", c.c_double), ("max_rank", c.c_size_t), ("centre", c.c_void_p),
                ("basis", c.c_void_p), ("rank", c.c_size_t), ("max_bytes", c.c_uint64)]


lib.sp_fast_state_free.argtypes, lib.sp_fast_state_free.restype = [c.c_void_p], None
lib.sp_fast_free.argtypes, lib.sp_fast_free.restype = [c.c_void_p], None


def attend(q, k, v, scale, causal=False, **options):
    """(n, heads, d) arrays, all heads in one call; returns the output and each head's certificate."""
    n_heads = q.shape[1]
    fast, out, certificates = c.c_void_p(), np.empty(q.shape[:2] + v.shape[2:], np.float32), (Certificate * n_heads)()
    sp.check(lib.sp_fast_create(c.byref(fast), c.byref(Options(**options))))
    strides = [x.shape[1] * x.shape[2] for x in (q, k, v, out)]
    heads = (Head * n_heads)(*(Head(*(x[:, h].ctypes.data for x in (q, k, v)), len(q), len(k), q.shape[2], v.shape[2], *strides, scale, causal)
                               for h in range(n_heads)))
    outputs = (c.c_void_p * n_heads)(*(out[:, h].ctypes.data for h in range(n_heads)))
    sp.check(lib.sp_fast_attention_heads(outputs, certificates, fast, heads, c.c_size_t(n_heads)))
    lib.sp_fast_free(fast)
    return out, certificates


def reference(q, k, v, scale, causal=False):
    heads = [torch.from_numpy(x).double().transpose(0, 1) for x in (q, k, v)]
    return torch.nn.functional.scaled_dot_product_attention(*heads, scale=scale, is_causal=causal).transpose(0, 1).numpy()


def head_of(q, k, v, scale):
    pointers = (x.ctypes.data if x is not None else None for x in (q, k, v))
    n_queries, n_keys, d_v = (len(q) if q is not None else 0), (len(k) if k is not None else 0), (v.shape[1] if v is not None else 0)
    return Head(*pointers, n_queries, n_keys, (q if q is not None else k).shape[1], d_v, scale=scale)


def check_state(rng, d, d_v, rank, degree, reach):
    """Error over bound of attention over `n` keys of low rank in a state and some others beside it, against torch over all of them."""
    n, n_text, n_queries = 1200, 70, 40
    basis = np.linalg.qr(rng.standard_normal((d, rank)))[0].T
    a = rng.standard_normal((n, rank))
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    centre = 2 * rng.standard_normal(d)
    k = (centre + a @ basis).astype(np.float32)
    v = (np.sign(a[:, :1]) * rng.uniform(0.5, 1, (n, d_v))).astype(np.float32)  # values that follow the keys
    q = rng.standard_normal((n_queries, d)).astype(np.float32)
    scale = np.float32(reach * 0.9 / np.linalg.norm(q @ basis.T, axis=1).max())
    text_k = (centre + rng.standard_normal((n_text, d))).astype(np.float32)
    text_v = rng.uniform(-1, 1, (n_text, d_v)).astype(np.float32)

    state, certificate = c.c_void_p(), Certificate()
    options = StateOptions(degree=degree, key_radius=1.1, rank_tolerance=1e-4)
    sp.check(lib.sp_fast_state_create(c.byref(state), c.byref(head_of(None, k[: n // 2], v[: n // 2], scale)), c.byref(options)))
    sp.check(lib.sp_fast_state_append(state, c.byref(head_of(None, k[n // 2 :], v[n // 2 :], scale))))
    out, lse = np.empty((n_queries, d_v), np.float32), np.empty(n_queries, np.float32)
    sp.check(lib.sp_fast_state_attend(c.c_void_p(out.ctypes.data), c.c_void_p(lse.ctypes.data), c.byref(certificate), state,
                                      c.byref(head_of(q, None, None, 0))))
    lib.sp_fast_state_free(state)
    assert certificate.n_keys == n and certificate.degree == degree and certificate.n_beyond == 0

    scores = torch.from_numpy(q).double() @ torch.from_numpy(text_k).double().T * float(scale)
    text_out = torch.softmax(scores, 1) @ torch.from_numpy(text_v).double()
    share = torch.sigmoid(torch.from_numpy(lse).double() - torch.logsumexp(scores, 1))[:, None]
    got = (share * torch.from_numpy(out).double() + (1 - share) * text_out).numpy()
    both_k, both_v = np.concatenate([k, text_k]), np.concatenate([v, text_v])
    want = reference(q[:, None], both_k[:, None], both_v[:, None], float(scale))[:, 0]
    bound = certificate.weights_bound * (both_v.max(0) - both_v.min(0)).max() + certificate.rounding_bound
    off = np.abs(got - want).max()
    assert off <= bound, f"state d {d}, rank {rank}, degree {degree}: {off} off, certified {bound}"
    return off / bound


def check_balanced(rng, d, d_v, rank, size, spread, causal):
    """Error over bound of heads that a call balances, or finds in a plane, against torch."""
    n, n_heads = 4096, 2
    q, k = (size * rng.standard_normal((n, n_heads, d)) for _ in range(2))
    stretch = spread ** (np.arange(d) / (d - 1) - 0.5)
    turned = np.linalg.qr(rng.standard_normal((d, d)))[0]
    q = (q / stretch @ turned).astype(np.float32)
    k = (k * stretch * (np.arange(d) < rank) @ turned + rng.standard_normal((n_heads, d))).astype(np.float32)
    v = rng.uniform(-0.5, 0.5, (n, n_heads, d_v)) + np.sign(k @ turned[0] - np.median(k @ turned[0], 0))[..., None]
    v = v.astype(np.float32)
    scale = float(np.float32(1 / np.sqrt(d)))
    out, certificates = attend(q, k, v, scale, causal=causal)
    want, worst = reference(q, k, v, scale, causal), 0
    for h, certificate in enumerate(certificates):
        assert certificate.rank == rank and certificate.degree > 0, f"d {d}, rank {rank}: not balanced"
        assert rank < d or certificate.range < certificate.max_range / 3
        bound = certificate.polynomial_bound + certificate.rounding_bound
        off = np.abs(out[:, h] - want[:, h]).max()
        assert off <= bound, f"balanced d {d}, rank {rank}, head {h}: {off} off, certified {bound}"
        worst = max(worst, off / bound)
    return worst


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
    shapes = ((64, 64, 4, 6, 2.1), (64, 64, 8, 4, 1.0), (16, 5, 2, 8, 3.3), (8, 8, 8, 3, 0.6))
    states = max(check_state(rng, *shape) for shape in shapes)
    balanced = ((8, 8, 8, 0.3, 30, False), (16, 16, 16, 0.17, 100, False), (64, 64, 4, 0.6, 1, False), (8, 8, 8, 0.2, 30, True))
    most = max(check_balanced(rng, *shape) for shape in balanced)
    print(f"fast_attention: {2 * len(balanced)} heads of opposed spectra and low rank within their certificates, at most {most:.3f} of them; torch in f64")
    print(f"fast_attention: {len(shapes)} states beside other keys within their certificates, at most {states:.3f} of them; torch in f64")
    print(f"fast_attention: {n_heads} heads within their certificates, at most {worst:.3f} of them; torch in f64")


if __name__ == "__main__":
    main()
