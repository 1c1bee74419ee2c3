"""Average precision and its companions for many units and concepts, on NumPy and Numba alone."""

from expertmine_kernels.concepts import ConceptRows
from expertmine_kernels.expertise import Expertise, average_precision, expertise
from expertmine_kernels.keys import key_values, order_keys
from expertmine_kernels.top import top_k

__all__ = ["ConceptRows", "Expertise", "average_precision", "expertise", "key_values", "order_keys", "top_k"]
