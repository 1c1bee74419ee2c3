"""Slow, obviously correct reference implementations in plain Python and NumPy. Imports no code under test."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def average_precision(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Sum, over the distinct scores from the top, the gain in recall times the precision."""
    positives = sum(labels)
    terms = []
    recall = 0.0
    for threshold in sorted(set(scores), reverse=True):
        found = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
        terms.append((sum(found) / positives - recall) * (sum(found) / len(found)))
        recall = sum(found) / positives
    return math.fsum(terms)


def auroc(scores: Sequence[float], labels: Sequence[int]) -> float:
    """Return the share of (positive, negative) pairs in the right order; a tie is half right."""
    on = [score for score, label in zip(scores, labels, strict=True) if label]
    off = [score for score, label in zip(scores, labels, strict=True) if not label]
    right = sum((p > n) + 0.5 * (p == n) for p in on for n in off)
    return right / (len(on) * len(off))


def expertise(responses: Array, positives: Sequence[Sequence[int]], negatives: Sequence[Sequence[int]]) -> Array:
    """Return (6, concepts, units): ap, auroc, on_mean, on_p50, on_p90, off_mean."""
    table = np.empty((6, len(positives), responses.shape[1]))
    for concept, (on_rows, off_rows) in enumerate(zip(positives, negatives, strict=True)):
        for unit in range(responses.shape[1]):
            on = [float(responses[row, unit]) for row in on_rows]
            off = [float(responses[row, unit]) for row in off_rows]
            labels = [1] * len(on) + [0] * len(off)
            table[:, concept, unit] = (
                average_precision(on + off, labels),
                auroc(on + off, labels),
                np.mean(on),
                np.percentile(on, 50),
                np.percentile(on, 90),
                np.mean(off),
            )
    return table


def top_k(ap: Sequence[float], k: int) -> list[int]:
    """Sort all units by (ap descending, unit ascending) and take k."""
    return sorted(range(len(ap)), key=lambda unit: (-ap[unit], unit))[:k]
