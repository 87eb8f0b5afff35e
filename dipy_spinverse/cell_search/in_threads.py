"""Work that several threads share."""

from concurrent.futures import ThreadPoolExecutor

import torch


def in_threads(function, *arguments) -> list:
    """Results of a function of each row of arguments."""
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(function, *arguments))
