"""Choose the pretraining data of a model of atoms before paying for the pretraining.

The Chemical Similarity Index (CSI) of arXiv 2502.11085 as a library, a command and a Snakemake pipeline.
"""

from importlib.metadata import version

__version__ = version("atomcsi")

__all__ = ["__version__", "calculator", "compare"]


def __getattr__(name: str) -> object:
    """Imports what needs PyTorch, which the package as such does not, when it is first used."""
    if name == "compare":
        from atomcsi.comparison import compare

        return compare
    if name == "calculator":
        from atomcsi.ase_calculator import ModelCalculator

        return ModelCalculator
    raise AttributeError(f"module 'atomcsi' has no attribute '{name}'")
