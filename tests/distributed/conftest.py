import pytest

from tests.helpers.kills import JOB, unbroken_run


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, float]:
    """Fingerprint of `JOB` on four ranks when nothing disturbs it, and its seconds."""
    return unbroken_run(tmp_path_factory.mktemp("unbroken"), "plain", *JOB)
