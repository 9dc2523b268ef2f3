"""Shared secret of the ranks (``engine.secret_file``), and the key of one run that is made from it."""

import hmac
import os
import stat
from pathlib import Path

SECRET_BYTES = 16
"""Least length of a secret."""
_LARGEST_FILE = 4096
"""Bytes; a larger file is another one by mistake."""

PROOF_BYTES = 32
"""Length of a proof, an HMAC-SHA256."""


def read_secret(path: str) -> bytes:
    """Read the secret that a file holds, without white space at its ends.

    Raises:
        ValueError: There is no such file, others may read or write it, or its secret is too short; one line that names
            the option, the file and what is allowed, and nothing of the content.
    """
    problem = None
    try:
        # Opening a pipe would wait for its other end.
        with open(os.open(Path(path).expanduser(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            mode = stat.S_IMODE(status.st_mode)
            if not stat.S_ISREG(status.st_mode):
                problem = "is no regular file"
            elif mode & (stat.S_IRWXG | stat.S_IRWXO):
                problem = f"has mode {mode:04o}: group or others have access"
            else:
                content = file.read(_LARGEST_FILE + 1)
                secret = content.strip()
                if len(content) > _LARGEST_FILE:
                    problem = f"has more than {_LARGEST_FILE} bytes"
                elif len(secret) < SECRET_BYTES:
                    problem = f"has {len(secret)} bytes without white space at the ends" if content else "is empty"
                else:
                    return secret
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise ValueError(
        f"engine.secret_file={path}: {problem}; allowed is a file with a secret of at least {SECRET_BYTES} bytes that "
        "its owner alone may read (mode 0600 or 0400)"
    )


class RunKey:
    """Key that only ranks of one run can make. It never leaves the process; proofs of it do."""

    def __init__(self, token: bytes, secret: bytes | None = None) -> None:
        """Make the key of a run.

        Args:
            token: Word of the run, which all ranks know; it lies in the launcher's store.
            secret: Secret of `read_secret`. Without one the key is only as secret as the launcher's store.
        """
        self._key = hmac.digest(secret or b"", b"counterflow run key" + token, "sha256")

    def proof(self, purpose: str, *parts: bytes) -> bytes:
        """HMAC-SHA256 of ``purpose`` and ``parts``, of `PROOF_BYTES` bytes: other ones have other proofs."""
        pieces = (purpose.encode(), *parts)
        framed = b"".join(len(piece).to_bytes(8, "little") + piece for piece in pieces)  # no two lists look the same
        return hmac.digest(self._key, framed, "sha256")

    def proves(self, proof: bytes, purpose: str, *parts: bytes) -> bool:
        """True if ``proof`` is that of ``purpose`` and ``parts``; takes the same time for all wrong ones."""
        return hmac.compare_digest(proof, self.proof(purpose, *parts))
