"""Markdown tables of the benchmarks."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np


def table(header, rows):
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def percent(values):
    return [f"{100 * v:.2f}" for v in values]


def verdict(value, goal):
    return "reached" if value <= goal else "missed"


def unit(vector):
    return np.asarray(vector) / np.linalg.norm(vector)


def machine():
    cpuinfo = Path("/proc/cpuinfo")
    name = platform.processor()
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        models = [line.partition(":")[2] for line in lines if line.startswith("model name")]
        name = models[0].strip() if models else name
    return f"{name}, {os.cpu_count()} cores"
