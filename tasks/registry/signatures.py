"""Sign manifests with Ed25519 keys, and read the keys from PEM files."""

import hashlib
import logging
import os
import re
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from schemas.config import expanded
from schemas.errors import WrongUsage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

logger = logging.getLogger(__name__)

Key = TypeVar("Key")

SIGNING_VARIABLE = "FASHION_ANN_SIGNING_KEY"
VERIFY_VARIABLE = "FASHION_ANN_VERIFY_KEY"
SIGNATURE_BYTES = 64

# A PEM file with an Ed25519 key has less than 200 bytes.
_LARGEST_KEY_FILE = 64 * 1024


def signing_key(given: str | None = None) -> "Ed25519PrivateKey | None":
    """Return the private key in the file ``given``, else in that of FASHION_ANN_SIGNING_KEY, None without either.

    Logs a warning if all users can read the file. Raises `WrongUsage` if it contains no such key.
    """
    source = SIGNING_VARIABLE if given is None else "--key"
    given = os.environ.get(SIGNING_VARIABLE) if given is None else given
    if given is None:
        return None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    expected = "expected a PEM file with a private Ed25519 key and without a password"
    return _read_key(source, given, expected, Ed25519PrivateKey, 0o004)  # type: ignore[type-abstract]  # not called


def verify_key() -> "Ed25519PublicKey | None":
    """Return the public key in the file of FASHION_ANN_VERIFY_KEY, None without the variable.

    Logs a warning if all users can write to the file. Raises `WrongUsage` if it contains no such key.
    """
    given = os.environ.get(VERIFY_VARIABLE)
    if given is None:
        return None
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    expected = "expected a PEM file with a public Ed25519 key"
    return _read_key(VERIFY_VARIABLE, given, expected, Ed25519PublicKey, 0o002)  # type: ignore[type-abstract]  # not called


def training_key() -> "Ed25519PrivateKey | None":
    """Return `signing_key`. Raises `WrongUsage` if FASHION_ANN_VERIFY_KEY would reject what it signs."""
    key, accepted = signing_key(), verify_key()
    if key is not None and accepted is not None and key.public_key() != accepted:
        raise WrongUsage(
            f"{SIGNING_VARIABLE} and {VERIFY_VARIABLE}: expected one key pair, received keys with sha256 "
            f"{fingerprint(key.public_key())} and {fingerprint(accepted)}. Set both to the same pair."
        )
    return key


def fingerprint(key: "Ed25519PublicKey") -> str:
    """Return the sha256 of a key in DER form, that of ``openssl pkey -pubin -in FILE -outform DER | sha256sum``."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def is_signed(text: bytes, signature: bytes, key: "Ed25519PublicKey") -> bool:
    """Return whether ``signature`` is that of ``text`` by ``key``."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, text)
    except InvalidSignature:
        return False
    return True


def _read_key(source: str, given: str, expected: str, kind: type[Key], forbidden_mode: int) -> Key:
    """Return the key of ``kind`` in a PEM file. Log a warning if the file has a mode with ``forbidden_mode``."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    if not given.strip():
        raise WrongUsage(f"{source}: {expected}, received an empty string.")
    path = expanded(given)
    try:
        # A pipe or a device may have no end.
        if path.exists() and not path.is_file():
            raise WrongUsage(f"{source}: {expected}, received {path}, which is not a file.")
        with path.open("rb") as file:
            mode, pem = os.fstat(file.fileno()).st_mode, file.read(_LARGEST_KEY_FILE)
    except OSError as error:
        raise WrongUsage(f"{source}: {expected}, {path} cannot be read ({error.strerror or error}).") from error
    if re.search(rb"[ ,]ENCRYPTED", pem):
        fix = f"`openssl pkey -in {path} -out FILE` writes one without."
        raise WrongUsage(f"{source}: {expected}, received {path} with a password. {fix}")
    for load in (lambda: load_pem_private_key(pem, None), lambda: load_pem_public_key(pem)):
        with suppress(ValueError, TypeError, UnsupportedAlgorithm):
            key: object = load()
            break
    else:
        raise WrongUsage(f"{source}: {expected}, received {path} without a key.")
    if isinstance(key, kind):
        if mode & forbidden_mode:
            _warn_of_mode(path, stat.filemode(mode))
        return key
    # Commands that only verify need no private key.
    fix = f" Use the output of `openssl pkey -in {given} -pubout`." if isinstance(key, Ed25519PrivateKey) else ""
    raise WrongUsage(f"{source}: {expected}, received {given} with a key of type {type(key).__name__}.{fix}")


@cache  # a command may read a key once per version
def _warn_of_mode(path: Path, mode: str) -> None:
    logger.warning("%s: all users have access (%s), expected none. Run `chmod o-rw %s`", path, mode, path)
