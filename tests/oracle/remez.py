"""Best polynomials for exp, judged by mpmath at 40 digits: certified errors hold and are tight, polynomials are the best there are,
ranges are the largest. Needs mpmath, which torch brings along.

    python tests/oracle/remez.py build/tests/write_polynomials

The judge shares nothing with remez.c: extremes are found by sampling E and Newton's method, and optimality is read off the values alone. If E
takes alternating signs at degree + 2 points, no polynomial of that degree has an error below the least of these values
(de la Vallee Poussin), so least / largest near 1 proves the best.
"""
import subprocess
import sys

import mpmath as mp

mp.mp.dps = 40
SAMPLES = 240


def extremes(c, rho):
    """Values of E(s) = p(s) e^-s - 1 at the ends and at its interior extremes, in order."""
    slope = [(j + 1) * c[j + 1] - c[j] if j + 1 < len(c) else -c[j] for j in range(len(c))]

    def value(a, s):
        return mp.polyval(a[::-1], s)

    points = [-rho * mp.cos(mp.pi * i / SAMPLES) for i in range(SAMPLES + 1)]
    signs = [value(slope, s) for s in points]
    roots = [mp.findroot(lambda s: value(slope, s), (points[i], points[i + 1]), solver="anderson", tol=1e-40, verify=False)
             for i in range(SAMPLES) if signs[i] * signs[i + 1] < 0]
    return [value(c, s) * mp.exp(-s) - 1 for s in [-rho, *roots, rho]]


def alternating(errors):
    """The largest of each run of equal signs."""
    runs = []
    for e in errors:
        if runs and (e > 0) == (runs[-1] > 0):
            runs[-1] = max(runs[-1], e, key=abs)
        else:
            runs.append(e)
    return [abs(e) for e in runs]


def main():
    lines = [line.split() for line in subprocess.run([sys.argv[1]], check=True, capture_output=True, text=True).stdout.splitlines()]
    n_fits = n_best = n_ranges = 0
    worst_gap = worst_level = mp.mpf(0)
    for kind, degree, *numbers in lines:
        degree, numbers = int(degree), [mp.mpf(float.fromhex(x)) for x in numbers]
        if kind == "range":
            eps, rho = numbers
            # The same question answered from outside: the best error of a degree, on that range and on one slightly wider, bracketed by
            # the levelled errors of mpmath's own exchange.
            wider = rho * (1 + mp.mpf("1e-6") + mp.mpf("1e-12") * mp.exp(2 * rho) / eps)  # the second: what is kept for rounding
            assert best_error(degree, rho) <= eps < best_error(degree, wider), (degree, eps, rho)
            n_ranges += 1
            continue
        rho, eps, *c = numbers
        if eps == 1:
            assert all(x == 0 for x in c)
            continue
        errors = extremes(c, rho)
        largest, rounding = max(map(abs, errors)), mp.mpf("1e-12") * mp.exp(2 * rho)
        assert largest <= eps, f"degree {degree}, rho {mp.nstr(rho, 5)}: error {mp.nstr(largest, 20)} above {mp.nstr(eps, 20)}"
        assert eps <= largest * (1 + mp.mpf("1e-6")) + rounding, (degree, rho, largest, eps)
        n_fits += 1
        if largest > 1e3 * rounding:
            levels = alternating(errors)
            assert len(levels) == degree + 2, (degree, rho, len(levels))
            assert min(levels) >= largest * (1 - mp.mpf("1e-6")), (degree, rho, levels)
            worst_gap, worst_level = max(worst_gap, eps / largest - 1), max(worst_level, 1 - min(levels) / largest)
            n_best += 1
    assert n_best > 60 and n_ranges == 60, (n_best, n_ranges)
    print(f"remez: {n_fits} certificates hold, at most {mp.nstr(worst_gap, 3)} above the error; {n_best} polynomials are the best to "
          f"{mp.nstr(worst_level, 3)}; {n_ranges} ranges are the largest")


def best_error(degree, rho):
    """The least largest error of a degree, by exchanges on samples in mpmath, to about 1e-9 of itself."""
    grid = [-rho * mp.cos(mp.pi * i / SAMPLES) for i in range(SAMPLES + 1)]
    points = [-rho * mp.cos(mp.pi * i / (degree + 1)) for i in range(degree + 2)]
    for _ in range(20):
        a = mp.matrix(degree + 2, degree + 2)
        for i, s in enumerate(points):
            for j in range(degree + 1):
                a[i, j] = s**j * mp.exp(-s)
            a[i, degree + 1] = (-1) ** i
        x = mp.lu_solve(a, mp.matrix([1] * (degree + 2)))
        c, level = list(x[: degree + 1]), abs(x[degree + 1])
        slope = [(j + 1) * c[j + 1] - c[j] if j < degree else -c[j] for j in range(degree + 1)]
        signs = [mp.polyval(slope[::-1], s) for s in grid]
        roots = [mp.findroot(lambda s: mp.polyval(slope[::-1], s), (grid[i], grid[i + 1]), solver="anderson", tol=1e-40, verify=False)
                 for i in range(SAMPLES) if signs[i] * signs[i + 1] < 0]
        points = [-rho, *roots, rho]
        assert len(points) == degree + 2
        if max(abs(mp.polyval(c[::-1], s) * mp.exp(-s) - 1) for s in points) < level * (1 + mp.mpf("1e-9")):
            break
    return level


if __name__ == "__main__":
    main()
