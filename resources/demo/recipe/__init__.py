"""Recipe of the demo datasets: small stand-ins in the file layouts of the official ones."""

import os

# A process a dataset and a thread a process; set before the numerical libraries are loaded.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"
