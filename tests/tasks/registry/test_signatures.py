"""Keys are read or rejected in one sentence; only versions signed by the trusted key are accepted."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from schemas.errors import StoredArtifactError, WrongUsage
from schemas.layout import MANIFEST_NAME, SIGNATURE_NAME
from tasks.registry.signatures import fingerprint, signing_key, training_key, verify_key
from tasks.registry.store import ModelStore, StoredVersion
from tasks.runtime.files import digest_of, write_json
from tests.keys import write_keys
from tests.stored import add_promoted, add_stored

PKCS8 = (Encoding.PEM, PrivateFormat.PKCS8)
SPKI = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
ED25519 = Ed25519PrivateKey.generate()
ELLIPTIC = generate_private_key(SECP256R1())
PEM = ED25519.private_bytes(*PKCS8, NoEncryption())


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Return a private and a public key file. The public one is trusted."""
    private, public = write_keys(tmp_path)
    monkeypatch.setenv("FASHION_ANN_VERIFY_KEY", str(public))
    return private, public


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore.of(tmp_path / "artifacts", "fashion-mnist")


def sign(store: ModelStore, number: int, private: Path) -> StoredVersion:
    key = signing_key(str(private))
    assert key is not None
    return store.sign(number, key)


def reseal(folder: Path, **changed: Any) -> None:
    """Change a manifest, and write its digest again, as anyone can who may write to the store."""
    content = json.loads((folder / MANIFEST_NAME).read_bytes()) | changed
    del content["manifest_sha256"]
    write_json(folder / MANIFEST_NAME, {**content, "manifest_sha256": digest_of(content)})


# --- keys ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "without a key"),
        (b"\xff\x00" * 100, "without a key"),
        (PEM[:60], "without a key"),
        (ED25519.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())[:90], "without a key"),
        (ED25519.private_bytes(*PKCS8, BestAvailableEncryption(b"secret")), "with a password"),
        (
            ELLIPTIC.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"s")),
            "passw",
        ),
        (ELLIPTIC.private_bytes(*PKCS8, NoEncryption()), "of type ECPrivateKey"),
        (ELLIPTIC.public_key().public_bytes(*SPKI), "of type ECPublicKey"),
    ],
    ids=["missing", "empty", "bytes", "cut off", "openssh", "encrypted", "old encryption", "private EC", "public EC"],
)
def test_a_file_without_the_key_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, message: str
) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.touch(mode=0o600)
        path.write_bytes(content)
    monkeypatch.setenv("FASHION_ANN_VERIFY_KEY", str(path))
    monkeypatch.setenv("FASHION_ANN_SIGNING_KEY", str(path))
    reads: tuple[tuple[str, Callable[[], object]], ...] = (
        ("--key: expected a PEM file with a private Ed25519 key", lambda: signing_key(str(path))),
        ("FASHION_ANN_SIGNING_KEY: expected a PEM file with a private Ed25519 key", signing_key),
        ("FASHION_ANN_VERIFY_KEY: expected a PEM file with a public Ed25519 key", verify_key),
    )
    for start, read in reads:
        with pytest.raises(WrongUsage) as caught:
            read()
        assert str(caught.value).startswith(start)
        assert message in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "spaces", "folder", "pipe", "device"])
def test_what_is_no_file_is_rejected_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    path = {"empty": "", "spaces": " ", "folder": str(tmp_path), "device": "/dev/zero"}.get(
        kind, str(tmp_path / "pipe")
    )
    monkeypatch.setenv("FASHION_ANN_VERIFY_KEY", path)
    with pytest.raises(WrongUsage, match=r"FASHION_ANN_VERIFY_KEY: expected .*(empty string|not a file)"):
        verify_key()


def test_the_other_half_of_a_pair_is_rejected(
    keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    private, public = keys
    public.chmod(0o644)  # as public keys have it, so no advice to change it
    with pytest.raises(WrongUsage, match=r"with a key of type .*Public"):
        signing_key(str(public))
    assert caplog.text == ""
    monkeypatch.setenv("FASHION_ANN_VERIFY_KEY", str(private))
    with pytest.raises(WrongUsage, match=r"openssl pkey -in .* -pubout"):
        verify_key()


def test_two_pairs_are_rejected_before_training(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert training_key() is None
    monkeypatch.setenv("FASHION_ANN_SIGNING_KEY", str(keys[0]))
    assert training_key() is not None
    monkeypatch.setenv("FASHION_ANN_SIGNING_KEY", str(write_keys(tmp_path, "other")[0]))
    with pytest.raises(WrongUsage, match="expected one key pair"):
        training_key()


@pytest.mark.parametrize(("which", "mode"), [("private", 0o644), ("public", 0o666)])
def test_a_key_that_all_users_can_change_is_a_warning(
    keys: tuple[Path, Path], caplog: pytest.LogCaptureFixture, which: str, mode: int
) -> None:
    private, public = keys
    read = {"private": lambda: signing_key(str(private)), "public": verify_key}[which]
    with caplog.at_level(logging.WARNING):
        assert read() is not None
        assert caplog.text == ""
        path = private if which == "private" else public
        path.chmod(mode)
        assert read() is not None
    assert f"chmod o-rw {path}" in caplog.text


# --- versions ---


def test_the_signature_covers_the_bytes_of_the_manifest(store: ModelStore, keys: tuple[Path, Path]) -> None:
    """openssl checks it without our code."""
    private, public = keys
    add_stored(store.root)
    folder = sign(store, 1, private).folder
    files = ("-in", folder / MANIFEST_NAME, "-sigfile", folder / SIGNATURE_NAME)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "Signature Verified Successfully\n", done.stderr
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", public, "-outform", "DER"], capture_output=True, check=True
    )
    assert store.version(1).check_signature() == hashlib.sha256(der.stdout).hexdigest()


def test_a_signature_is_required_only_with_the_variable(
    store: ModelStore, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add_stored(store.root)
    with pytest.raises(StoredArtifactError, match="received no signature") as caught:
        stored.check_signature()
    key = verify_key()
    assert key is not None
    for part in ("Version 1 ", str(stored.folder / SIGNATURE_NAME), fingerprint(key), "fashion-ann sign 1 --key"):
        assert part in str(caught.value)
    stored.check()
    monkeypatch.delenv("FASHION_ANN_VERIFY_KEY")
    assert stored.check_signature() is None


def test_an_added_version_is_signed_at_once(store: ModelStore, keys: tuple[Path, Path]) -> None:
    stored = add_stored(store.root, private_key=signing_key(str(keys[0])))
    assert stored.check_signature() == store.version(1).check_signature() is not None
    assert SIGNATURE_NAME not in stored.manifest.files


@pytest.mark.parametrize(
    "forge",
    [
        lambda folder: reseal(folder, test_accuracy=0.99),
        lambda folder: reseal(folder, unknown="key"),
        lambda folder: (folder / SIGNATURE_NAME).write_bytes(bytes(64)),
        lambda folder: (folder / SIGNATURE_NAME).unlink(),
    ],
    ids=["changed", "added key", "zeros", "removed"],
)
def test_a_resealed_version_is_not_accepted(
    store: ModelStore, keys: tuple[Path, Path], forge: Callable[[Path], object]
) -> None:
    add_stored(store.root)
    stored = sign(store, 1, keys[0])
    stored.check_signature()
    forge(stored.folder)
    resealed = store.version(1)
    resealed.check()
    with pytest.raises(StoredArtifactError, match="Version 1 is not accepted"):
        resealed.check_signature()


def test_a_signed_version_counts_only_in_its_place(store: ModelStore, keys: tuple[Path, Path]) -> None:
    add_stored(store.root)
    first = sign(store, 1, keys[0])
    shutil.copytree(first.folder, store.folder(2))
    with pytest.raises(StoredArtifactError, match="describes another version than 2"):
        store.version(2)
    reseal(store.folder(2), version=2)
    with pytest.raises(StoredArtifactError, match="another signature"):
        store.version(2).check_signature()
    digits = ModelStore(store.root.with_name("digits"))
    shutil.copytree(first.folder, digits.folder(1))
    with pytest.raises(StoredArtifactError, match="expected a version of digits, received one of fashion-mnist"):
        digits.version(1).check_signature()
    with pytest.raises(StoredArtifactError, match="expected a version of digits"):
        sign(digits, 1, keys[0])


def test_another_key_replaces_the_signature(
    store: ModelStore, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_keys(tmp_path, "new")
    add_stored(store.root)
    sign(store, 1, private)
    with pytest.raises(StoredArtifactError, match="another signature"):
        store.version(1).check_signature()
    sign(store, 1, keys[0])
    assert store.version(1).check_signature() is not None
    monkeypatch.setenv("FASHION_ANN_VERIFY_KEY", str(public))
    with pytest.raises(StoredArtifactError, match="another signature"):
        store.version(1).check_signature()


def test_a_stopped_sign_leaves_the_version_as_it_was(
    store: ModelStore, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process leaves files beside the version only, and the next writer removes them."""
    add_stored(store.root)
    before = sign(store, 1, keys[0])
    left: list[Path] = []

    def stop(path: Path) -> None:
        left.extend(store.leftovers())
        before.check_signature()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tasks.registry.store.sync_to_disk", stop)
        with pytest.raises(KeyboardInterrupt):
            sign(store, 1, write_keys(keys[0].parent, "new")[0])
    assert len(left) == 1
    assert store.leftovers() == []
    before.check_signature()


def test_a_damaged_version_is_not_signed(store: ModelStore, keys: tuple[Path, Path]) -> None:
    folder = add_stored(store.root).folder
    (folder / "report.html").write_text("edited")
    with pytest.raises(StoredArtifactError, match=r"report\.html"):
        sign(store, 1, keys[0])
    assert not (folder / SIGNATURE_NAME).exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(65)),
        lambda path: path.symlink_to("manifest.json"),
        lambda path: path.symlink_to("nowhere"),
        lambda path: path.mkdir(),
        os.mkfifo,
    ],
    ids=["empty", "long", "link", "broken link", "folder", "pipe"],
)
def test_what_is_no_signature_is_rejected_also_without_a_key(store: ModelStore, make: Callable[[Path], object]) -> None:
    stored = add_stored(store.root)
    make(stored.folder / SIGNATURE_NAME)
    with pytest.raises(StoredArtifactError, match=r"manifest\.json\.sig: expected (a file|.*64 bytes), received"):
        stored.check()


def test_an_unsigned_promotion_is_not_logged(
    store: ModelStore, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone who can write to the store can write a version whose manifest records its promotion."""
    add_promoted(store.root, private_key=signing_key(str(keys[0])))
    add_stored(store.root, promoted=True)
    with store.lock(), pytest.raises(StoredArtifactError, match="Version 2 is not accepted"):
        store.recover()
    assert store.aliases.champion() == 1
    monkeypatch.delenv("FASHION_ANN_VERIFY_KEY")
    with store.lock():
        store.recover()
    assert store.aliases.champion() == 2


def test_unaccepted_versions_are_no_baseline(store: ModelStore, keys: tuple[Path, Path]) -> None:
    def write_profile(folder: Path) -> None:
        (folder / "profile.json").write_text("{}")

    add_promoted(store.root, write=write_profile)
    assert store.baseline_profile("1" * 64) is None
    sign(store, 1, keys[0])
    assert store.baseline_profile("1" * 64) == b"{}"


def test_a_signing_run_reuses_only_accepted_versions(store: ModelStore, keys: tuple[Path, Path]) -> None:
    add_stored(store.root, key="inputs", private_key=signing_key(str(keys[0])))
    add_stored(store.root, key="inputs")
    found = [store.find_by_inputs("inputs", accepted=accepted) for accepted in (False, True)]
    assert [version and version.number for version in found] == [2, 1]
