import pytest

from schemas.layout import STORED_NAMES, is_litter


@pytest.mark.parametrize(
    "name",
    [
        *(".DS_Store", "._model.weights.h5", "Thumbs.db", "thumbs.db", "desktop.ini", "Desktop.ini", "@eaDir"),
        *(".nfs0000000000d3b2e100000001", ".fuse_hidden0000000100000001", ".smbdeleteAAA000c4.4", ".Trash-1000"),
        *(".~lock.metrics.json#", ".manifest.json.swp", ".directory", "Icon\r", ".Spotlight-V100"),
    ],
)
def test_files_of_the_system_are_litter(name: str) -> None:
    assert is_litter(name)


@pytest.mark.parametrize(
    "name",
    [
        *sorted(STORED_NAMES),
        *("manifest.json", "DS_Store", "x.DS_Store", "Thumbs.db.h5", "nfs0001", ".nfs", ".hidden"),
        *("model.weights.h5.bak", "manifest.json~", ".0001.abc.tmp", ".lock", ".in-use", "eaDir", "._"[:1], ""),
    ],
)
def test_other_files_are_no_litter(name: str) -> None:
    assert not is_litter(name)
