"""Average precision and related statistics for many units and concepts, with NumPy and Numba only."""

from expertmine_kernels.concepts import ConceptRows
from expertmine_kernels.expertise import Expertise, average_precision, expertise, responses_at_once
from expertmine_kernels.keys import key_values, order_keys
from expertmine_kernels.resampling import draw_with_replacement, resampled_average_precision
from expertmine_kernels.top import top_k

__all__ = [
    "ConceptRows",
    "Expertise",
    "average_precision",
    "draw_with_replacement",
    "expertise",
    "key_values",
    "order_keys",
    "resampled_average_precision",
    "responses_at_once",
    "top_k",
]
