"""Compiled loops over the links of finite elements."""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True, fastmath=True)
def link_products(link_nodes, y, u, q, amplitude, total):
    """Add y^H dK u of every link to its derivatives by conductance and displacement.

    total[l, 0] += amplitude Re sum_m conj(y_i - y_j) (u_i - u_j);
    total[l, 1:] += amplitude sum_m q_m Im(conj(y_i) u_j - conj(y_j) u_i).
    """
    for link in range(len(link_nodes)):
        i, j = link_nodes[link]
        jump = x = y_sum = z = 0.0
        for m in range(y.shape[1]):
            yi, yj, ui, uj = y[i, m], y[j, m], u[i, m], u[j, m]
            dy, du = yi - yj, ui - uj
            jump += dy.real * du.real + dy.imag * du.imag
            swirl = yi.real * uj.imag - yi.imag * uj.real - yj.real * ui.imag + yj.imag * ui.real
            x += swirl * q[m, 0]
            y_sum += swirl * q[m, 1]
            z += swirl * q[m, 2]
        total[link, 0] += amplitude * jump
        total[link, 1] += amplitude * x
        total[link, 2] += amplitude * y_sum
        total[link, 3] += amplitude * z
