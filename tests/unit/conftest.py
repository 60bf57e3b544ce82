from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real() -> Path:
    """Folder of the real samples of the datasets, which are not part of the project."""
    folder = Path(__file__).parents[3] / "shared" / "real"
    if not folder.is_dir():
        pytest.skip("needs ../shared/real")
    return folder
