"""Choose the pretraining data of a model of atoms before paying for the pretraining.

The Chemical Similarity Index (CSI) of arXiv 2502.11085 as a library, a command and a Snakemake pipeline.
"""

from importlib.metadata import version

__version__ = version("atomcsi")

__all__ = ["__version__", "compare"]


def __getattr__(name: str) -> object:
    """Imports :func:`compare` when it is first used: it needs PyTorch, which the package as such does not."""
    if name == "compare":
        from atomcsi.comparison import compare

        return compare
    raise AttributeError(f"module 'atomcsi' has no attribute '{name}'")
