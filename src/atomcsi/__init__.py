"""Choose the pretraining data of a model of atoms before paying for the pretraining.

The Chemical Similarity Index (CSI) of arXiv 2502.11085 as a library, a command and a Snakemake pipeline.
"""

from importlib.metadata import version

__version__ = version("atomcsi")
