"""Secret of a file, and proofs of the key that is made from it."""

import hashlib
import os
import re
from pathlib import Path

import pytest

from counterflow.transport.shared_secret import RunKey, read_secret

SECRET = "a secret of more than 16 bytes"


def written(path: Path, content: str | bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400])
@pytest.mark.parametrize("content", [SECRET, f"{SECRET}\n", f"\n  {SECRET} \r\n"])
def test_white_space_at_the_ends_does_not_count(content: str, mode: int, tmp_path: Path) -> None:
    assert read_secret(str(written(tmp_path / "secret", content, mode))) == SECRET.encode()


def test_a_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path / "secret", SECRET)
    assert read_secret("~/secret") == SECRET.encode()


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        ("", 0o600, "is empty"),
        (" \n", 0o600, "has 0 bytes without white space at the ends"),
        ("fifteen bytes..\n", 0o600, "has 15 bytes without white space at the ends"),
        ("x" * 5000, 0o600, "has more than 4096 bytes"),
        (SECRET, 0o640, "has mode 0640: group or others have access"),
        (SECRET, 0o604, "has mode 0604: group or others have access"),
        (SECRET, 0o620, "has mode 0620: group or others have access"),
    ],
)
def test_a_file_that_is_no_secret_is_refused(content: str, mode: int, problem: str, tmp_path: Path) -> None:
    path = written(tmp_path / "secret", content, mode)
    line = (
        f"engine.secret_file={path}: {problem}; allowed is a file with a secret of at least 16 bytes that its owner "
        "alone may read (mode 0600 or 0400)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        read_secret(str(path))


def test_what_is_no_file_is_refused_without_a_wait(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^engine.secret_file=.*/none: cannot be read \(No such file or directory\); "
    ):
        read_secret(str(tmp_path / "none"))
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
        read_secret(str(tmp_path))
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ValueError, match="is no regular file"):
        read_secret(str(tmp_path / "pipe"))


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """RFC 2104, written out."""
    padded = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + message).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in padded) + inner).digest()


def test_a_proof_is_an_hmac_of_all_its_parts() -> None:
    key = hmac_sha256(b"secret", b"counterflow run keytoken")
    framed = b"".join(len(part).to_bytes(8, "little") + part for part in (b"edge", b"one", b"two"))
    assert RunKey(b"token", b"secret").proof("edge", b"one", b"two") == hmac_sha256(key, framed)


def test_proofs_differ_where_anything_does() -> None:
    keys = [RunKey(b"token"), RunKey(b"token", b"secret"), RunKey(b"other", b"secret"), RunKey(b"token", b"secret.")]
    contents: list[tuple[str, tuple[bytes, ...]]] = [
        ("edge", (b"one", b"two")), ("edge", (b"two", b"one")), ("edge", (b"onetwo",)), ("edge", (b"onet", b"wo")),
        ("edgeone", (b"two",)), ("edge", ()),
    ]  # fmt: skip
    proofs = {key.proof(purpose, *parts) for key in keys for purpose, parts in contents}
    assert len(proofs) == len(keys) * len(contents)
    assert all(len(proof) == 32 for proof in proofs)


def test_only_the_whole_proof_counts() -> None:
    key = RunKey(b"token", b"secret")
    proof = key.proof("edge", b"nonce")
    assert key.proves(proof, "edge", b"nonce")
    for wrong in (b"", proof[:-1], proof + b"\0", bytes(32), bytes([proof[0] ^ 1]) + proof[1:]):
        assert not key.proves(wrong, "edge", b"nonce")


def test_a_key_does_not_print_itself() -> None:
    assert "token" not in f"{RunKey(b'token', b'secret')!r}"
