"""Infer a dataset file and its baseline profile from CSVs."""

import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from schemas.config import datasets_folder
from schemas.contract import (
    SPLITS,
    Bounds,
    DatasetContract,
    Minima,
    Split,
    check_name,
    contract_of,
    dataset_paths,
    parse_contract,
)
from schemas.errors import DataContractError, DataUnavailable, WrongUsage
from schemas.layout import PROFILE_NAME
from schemas.references import CsvSplit
from tasks.checks.image_checks import measure_checks, measure_leaks
from tasks.checks.image_profile import (
    Images,
    Labels,
    mean_images,
    most_similar,
    profile_images,
    standardized,
    write_profile,
)
from tasks.checks.measurements import Measurement, border
from tasks.checks.near_duplicates import duplicate_report, find_test_images_in_train
from tasks.checks.scan import Sample, Scan, scan_split
from tasks.checks.summary import check_results, sentences
from tasks.data.csv_blocks import MAX_LINE_BYTES, SAVE_WITHOUT_INDEX
from tasks.data.csv_cells import BOM, parse_label, parse_line, shorten
from tasks.data.csv_file import HashedFile, decompressed
from tasks.data.csv_header import INDEX, reject_other_formats
from tasks.data.csv_reader import open_csv
from tasks.data.data_folder import csv_split, present_csvs
from tasks.data.parquet import read_rows
from tasks.data.parquet_split import ingest_csv, part_files
from tasks.data.published_data import fetch_data, require_supplied
from tasks.data.quarantine import open_quarantine
from tasks.data.splits import scale_pixels
from tasks.runtime.files import atomic_write

_MOST_BAD_ROWS = 0.01
_SHADES = " .:-=+*#%@"


@dataclass(frozen=True)
class NewDataset:
    """A dataset file that was written. ``notes``: what to look at, one sentence each. ``picture``: lines of text."""

    contract: DatasetContract
    notes: tuple[str, ...]
    picture: tuple[str, ...]


@dataclass(frozen=True)
class _Loaded:
    """A split: its Parquet, images uint8 (N, pixels), classes uint8 (N,), and the number of bad rows."""

    files: Sequence[Path]
    images: Images
    classes: Labels
    bad_rows: int


def init_dataset(
    name: str, folder: Path, *, like: str | None = None, transpose: bool = False, holdout: float | None = None
) -> NewDataset:
    """Write NAME.toml and its baseline profile NAME.json to `datasets_folder`, inferred from the CSVs in ``folder``.

    like: a dataset whose bounds of checks, minimum rows and shares are copied. transpose: the CSVs have the pixels
    column by column. holdout: share of the train rows that becomes the test split.

    A check that the train split would fail, compared with its own profile, is turned off. Raises `WrongUsage` for a
    name that is invalid or in use and for another ``folder``, `DataUnavailable` without CSVs, and `DataContractError`
    for their content.
    """
    check_name(name)
    if (existing := dataset_paths().get(name)) is not None:
        raise WrongUsage(
            f"{existing} exists. Expected the name of a new dataset. Remove the file, or use another name."
        )
    if holdout is not None and not 0 < holdout < 1:
        raise WrongUsage(f"--holdout: expected a share between 0 and 1, received {holdout:g}.")
    model = None if like is None else contract_of(like)
    target = datasets_folder() / f"{name}.toml"
    draft, csvs = _draft(name, target, folder, transpose, holdout)
    with tempfile.TemporaryDirectory() as temporary:
        loaded = {split: _load(csvs[split], draft, Path(temporary)) for split in SPLITS}
        contract, notes = _infer(draft, loaded, model)
        profile = profile_images(loaded["train"].images, loaded["train"].classes, contract)
        reference = Path(temporary) / PROFILE_NAME
        write_profile(reference, profile)
        contract, more = _fit_checks(replace(contract, reference=reference), loaded)
        minima, note = _minima(loaded)
        contract = replace(contract, promotion=minima)
    text = dataset_toml(contract)
    try:
        parse_contract(target, text.encode())
    except ValueError as error:
        raise DataContractError(f"{folder} has CSVs in a form that no dataset has: {error}. Correct them.") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target.with_suffix(".json")) as file:
        write_profile(file, profile)
    with atomic_write(target) as file:
        file.write_text(text, encoding="utf-8")
    return NewDataset(contract_of(name), (*notes, *more, note), _picture(loaded["train"], contract))


def make_profile(contract: DatasetContract, data_dir: Path, target: Path) -> None:
    """Write the baseline profile of the train split in ``data_dir`` to ``target``.

    If the dataset is published, that must be the published split; it is downloaded if the folder has no CSVs. Raises
    `WrongUsage` for another one, and `DataContractError` for missing or bad CSVs.
    """
    if not contract.can_be_fetched:
        require_supplied(contract, data_dir)
    csvs = fetch_data(contract, data_dir)
    if contract.can_be_fetched and csvs["train"].origin != "fetched":
        raise WrongUsage(
            f"{csvs['train'].name} in {data_dir} is not the published train split of {contract.name}. Pass an empty "
            "folder, to which the split is downloaded."
        )
    with tempfile.TemporaryDirectory() as temporary:
        train = _load(csvs["train"], contract, Path(temporary))
    with atomic_write(target) as file:
        write_profile(file, profile_images(train.images, train.classes, contract))


# --- CSVs ---


def _draft(
    name: str, target: Path, folder: Path, transpose: bool, holdout: float | None
) -> tuple[DatasetContract, dict[Split, CsvSplit]]:
    """Return a contract with the names of files and columns, the shape and the labels, and the CSVs."""
    sources: tuple[Split, ...] = SPLITS if holdout is None else ("train",)
    names = {split: _csv_name(folder, name, split) for split in sources}
    draft = DatasetContract(
        name=name,
        path=target,
        digest="",
        height=1,
        width=2,
        labels={},
        background=None,
        files={split: file for split, file in names.items() if file != f"{name}_{split}.csv"},
        holdout=holdout,
        minimum_rows=dict.fromkeys(SPLITS, 0),
    )
    present = present_csvs(draft, folder)
    first, *others = (present[split][0] for split in sources)
    line = next(_lines(first), b"")
    label_at, label_column, naming, (height, width) = _header(first, line)
    for other in others:
        if len(parse_line(next(_lines(other), b"")).cells) == len(parse_line(line).cells) - 1:
            raise DataContractError(
                f"{other} has one column fewer than {first.name}. Expected a test split with labels. Take one from "
                "train with `--holdout 0.1`, and predict this file later."
            )
    labels = _labels(present["train"], label_at, naming != "none")
    draft = replace(
        draft,
        height=height,
        width=width,
        label_column=label_column,
        naming=naming,
        labels={label: str(label) for label in labels},
    )
    if height == 1:
        height, width = _shape(first, draft)
    if transpose:
        height, width = width, height
    csvs = {split: csv_split(split, paths) for split, paths in present.items()}
    return replace(draft, height=height, width=width, transpose=transpose), csvs


def _csv_name(folder: Path, name: str, split: Split) -> str:
    """Return the name of the split's only CSV in ``folder``; of shards, the part that they share."""
    if not folder.is_dir():
        raise WrongUsage(f"{folder} is not a folder. Expected one with the CSVs. Give another one with --from.")
    plain = {path.name.removesuffix(".gz") for path in folder.iterdir() if not path.name.startswith(".")}
    csvs = sorted(file for file in plain if file.endswith(".csv"))
    found = [file for file in csvs if split in file.lower() and (split == "train" or "train" not in file.lower())]
    letters = re.sub("[^a-z0-9]", "", name)
    if len(found) > 1:
        found = [file for file in found if letters in re.sub("[^a-z0-9]", "", file.lower())] or found
    stem = os.path.commonprefix([file.removesuffix(".csv") for file in found])  # noqa: RUF071  # of names, not paths
    whole = stem if f"{stem}.csv" in found else stem.rpartition("-")[0]
    if not found or split not in whole.lower():
        holdout = " Without a test split, use `--holdout 0.1`." if split == "test" and not found else ""
        raise DataUnavailable(
            f"{folder} contains {', '.join(csvs[:8]) or 'no CSV'}. Expected one CSV with {split!r} in its name, plain "
            f"or as .csv.gz, or its shards.{holdout} Rename the file, or give another folder with --from."
        )
    return f"{whole}.csv"


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a CSV without their ends."""
    with HashedFile(path) as hashed, BufferedReader(hashed) as file:
        rest = b""
        for chunk in decompressed(file, MAX_LINE_BYTES, lambda start: reject_other_formats(path, start, "label")):
            *lines, rest = (rest + chunk).removeprefix(BOM).split(b"\n")
            yield from lines
            if len(rest) > MAX_LINE_BYTES:
                raise DataContractError(f"{path} has a line of more than {MAX_LINE_BYTES} bytes. Expected a CSV.")
        if rest:
            yield rest


def _header(path: Path, line: bytes) -> tuple[int, str, str, tuple[int, int]]:
    """Return the place and the name of the label column, the naming of the pixels, and height and width in the file.

    Without a grid in the names, all pixels are in one row.
    """
    cells = [cell.strip(" \r") for cell in parse_line(line).cells]
    if all(re.fullmatch(r"-?[0-9]+(\.[0-9]*)?", cell) for cell in cells):
        if cells == [str(number) for number in range(len(cells))] and len(cells) > 2:
            return 0, "0", "1..", (1, len(cells) - 1)
        return 0, "label", "none", (1, len(cells) - 1)
    if len(cells) == 1:
        raise DataContractError(
            f"{path}: expected columns that are separated by commas, received one column, {shorten(cells[0])}. Save "
            "the file with commas."
        )
    forms = [re.sub("[0-9]+", "#", cell) for cell in cells]
    pixel = Counter(forms).most_common(1)[0][0]
    others = [at for at, form in enumerate(forms) if form != pixel]
    # In the order of their numbers: the columns of a CSV may be in any order.
    pixels = sorted(
        (cell for cell, form in zip(cells, forms, strict=True) if form == pixel),
        key=lambda name: [int(number) for number in re.findall("[0-9]+", name)],
    )
    if INDEX.fullmatch(cells[0]) and (len(others) > 1 or cells[0] != "index"):
        raise DataContractError(
            f"{path}: the first column {cells[0]!r} looks like the index of a pandas DataFrame. Expected the "
            f"columns of the labels and the pixels only. In pandas, {SAVE_WITHOUT_INDEX}."
        )
    if len(others) != 1 or "#" not in pixel:
        beside = ", ".join(shorten(cells[at]) for at in others[:5]) or "no other"
        raise DataContractError(
            f"{path}: expected a header with one column of labels beside numbered pixels, such as label,pixel1,pixel2; "
            f"received {len(pixels)} columns such as {shorten(pixels[0])}, and beside them {beside}. Remove "
            "columns that are neither label nor pixel."
        )
    shape = (1, len(pixels))
    if (first := re.search(r"(\d+)x(\d+)$", pixels[0])) and (last := re.search(r"(\d+)x(\d+)$", pixels[-1])):
        shape = int(last[1]) - int(first[1]) + 1, int(last[2]) - int(first[2]) + 1
    return others[0], cells[others[0]], f"{pixels[0]}..", shape


def _labels(paths: Sequence[Path], at: int, has_header: bool) -> list[int]:
    """Return the labels that occur twice or more. Others are bad rows: a class needs two rows."""
    seen: Counter[str] = Counter()
    for path in paths:
        lines = _lines(path)
        if has_header:
            next(lines)
        for line in lines:
            cell = line.split(b",", at + 1)[at : at + 1]
            seen.update(part.strip(b' "\r').decode("utf-8", "replace") for part in cell if line.strip())
    labels: Counter[int] = Counter()
    for text, rows in seen.items():
        if (label := parse_label(text)) is not None:
            labels[label] += rows
    known = sorted(label for label, rows in labels.items() if rows > 1)
    wrong = sorted(text for text in seen if parse_label(text) is None)
    if not 2 <= len(known) <= 256 or sum(seen[text] for text in wrong) > _MOST_BAD_ROWS * seen.total():
        received = f"{len(labels)} different integers" + (f", and texts such as {wrong[0]!r}" if wrong else "")
        place = "" if has_header else " Without a header the first column must have the labels, not row numbers."
        raise DataContractError(
            f"{paths[0]}: expected 2 to 256 different labels, integers with two rows or more; column {at + 1} has "
            f"{received}.{place} Write each label as an integer, such as 3."
        )
    return known


def _shape(path: Path, draft: DatasetContract) -> tuple[int, int]:
    """Return height and width of flat images: a square, or the sides whose neighbouring rows differ least."""
    if (side := math.isqrt(draft.pixels)) ** 2 == draft.pixels:
        return side, side
    with (
        open_quarantine(path, discard=True) as bad,
        open_csv(path, draft, quarantine=bad) as rows,
    ):
        images = next(iter(rows))[:, 1:].astype(np.int16)
    sides = [width for width in range(4, draft.pixels // 4 + 1) if draft.pixels % width == 0]
    if not sides:
        raise DataContractError(
            f"{path}: expected images of at least 4 x 4 pixels, received {draft.pixels} pixels, which form none."
        )
    width = min(sides, key=lambda width: float(np.abs(images[:, width:] - images[:, :-width]).mean()))
    return draft.pixels // width, width


def _load(csv: CsvSplit, contract: DatasetContract, folder: Path) -> _Loaded:
    """Read a split. Raises `DataContractError`, which lists the bad cells, if more than one row of a hundred is bad."""
    target = folder / csv.split
    lenient = replace(contract, minimum_rows=dict.fromkeys(SPLITS, 0))
    facts = ingest_csv(csv, target, folder / "bad.parquet", lenient, "100%")
    if facts.quarantined > _MOST_BAD_ROWS * (facts.rows + facts.quarantined) or not facts.rows:
        for file in csv.files:
            with open_csv(file.path, contract) as rows:
                for _ in rows:
                    pass
    if not facts.rows:  # each row is in the other split
        raise DataContractError(f"{csv.name}: --holdout leaves no row for {csv.split}. Give another share.")
    files = part_files(target, csv)
    images, classes = read_rows(files, contract.columns)
    return _Loaded(files, images, classes, facts.quarantined)


# --- inference ---


def _infer(
    draft: DatasetContract, loaded: dict[Split, _Loaded], like: DatasetContract | None
) -> tuple[DatasetContract, list[str]]:
    """Return the contract with shape, pixel range, background, minimum rows and shares, and what to look at."""
    train = loaded["train"]
    notes = ["labels: the classes have no names yet. Replace the numbers in [labels] by names."]
    height, width = draft.height, draft.width
    if height != width:
        notes.append(f"shape: {height} x {width} pixels. Correct height and width if that is wrong.")
    low, high = (int(end([end(part.images) for part in loaded.values()])) for end in (np.min, np.max))
    if high > 127:
        low, high = 0, 255
    draft = replace(draft, pixel_min=low, pixel_max=max(high, low + 1))
    edge = train.images[:, border(draft)].astype(np.int16)
    near = (high - low) / 20  # compressed pictures have a background of several values
    background = next((end for end in (low, high) if (np.abs(edge - end) <= near).mean() > 0.5), None)
    rows = {split: len(part.classes) for split, part in loaded.items()}
    share = np.bincount(train.classes).max() / rows["train"]
    contract = replace(
        draft,
        background=background,
        kind="photographs" if background is None else "drawings",
        minimum_rows={"train": max(1, min(1_000, rows["train"] // 2)), "test": max(1, min(100, rows["test"] // 2))},
        maximum_class_share=float(min(0.95, max(0.5, round(1.5 * share, 2)))),
    )
    if like is not None:
        contract = replace(
            contract,
            kind=like.kind,
            check_bounds=like.check_bounds,
            near_duplicate=like.near_duplicate,
            # Not more than these CSVs have.
            minimum_rows={split: max(1, min(like.minimum_rows[split], rows[split] // 2)) for split in SPLITS},
            maximum_class_share=max(like.maximum_class_share, contract.maximum_class_share),
        )
    what = "photographs without a background" if background is None else f"drawings, {background} is background"
    notes.append(f"images: {what}. Correct background and kind if that is wrong.")
    if not draft.transpose:
        notes.append(
            "orientation: if the picture below is turned or mirrored, remove the dataset file and run this again with "
            "--transpose."
        )
    for split, part in loaded.items():
        if part.bad_rows:
            notes.append(f"bad rows: {part.bad_rows} of {split} were left out. `train` needs --bad-rows for them.")
        counts = np.bincount(part.classes, minlength=contract.classes)
        if missing := [contract.class_labels[at] for at in np.flatnonzero(counts == 0)]:
            notes.append(f"{split}: no row has one of the labels {missing[:9]}. `train` will reject the split.")
    return contract, notes


def _fit_checks(contract: DatasetContract, loaded: dict[Split, _Loaded]) -> tuple[DatasetContract, list[str]]:
    """Turn off checks that the train split fails, and return what both splits exceed."""
    notes: list[str] = []
    samples: dict[Split, tuple[Sample, Sequence[Path]]] = {}
    for split, part in loaded.items():
        scan, sample = _scan(part.files, contract)
        samples[split] = sample, part.files
        profile = profile_images(sample.images, sample.labels, contract)
        measured = measure_checks(scan, sample, profile, contract, None)
        if split == "train":
            # Images that resemble each other within train do so across splits as well, by chance up to twice as often.
            rest, drawn = _divide(part, len(loaded["test"].classes), contract)
            leaks, slack = _measure_leaks(rest, drawn, contract), 2
        else:
            leaks, slack = _measure_leaks(samples["train"], samples["test"], contract), 1
        measured |= leaks
        failed = [
            name
            for name, value in measured.items()
            if contract.check(name).fails(value.value * slack if name in leaks else value.value)
        ]
        if split == "train":
            for name in failed:
                notes.append(f"check {name}: off, because its value for the train split is {measured[name].value:.3g}.")
            off = dict.fromkeys(failed, Bounds())
            contract = replace(contract, check_bounds={**contract.check_bounds, **off})
        elif failed:
            notes.append(
                f"test: `train` will reject it because of {', '.join(failed)}. Correct the CSV. If it is right, turn "
                "these checks off in [checks]."
            )
        notes += [f"{split}: {line}" for line in sentences(check_results(measured, contract))]
    return contract, notes


def _minima(loaded: dict[Split, _Loaded]) -> tuple[Minima, str]:
    """Return the minima of promotion, and a sentence with the measurements that they are derived from.

    The accuracy lies between that of the most frequent class for every image and that of the nearest class mean of
    train, which a network exceeds: a third of the way from the first. Both are measured on the test rows, because
    writers or persons may differ between the splits.
    """
    train, test = loaded["train"], loaded["test"]
    means = mean_images(train.images, train.classes)
    nearest = np.array(list(means))[most_similar(test.images, standardized(np.stack(list(means.values()))))]
    rows = np.bincount(test.classes)
    recalls = np.bincount(test.classes, weights=nearest == test.classes)[rows > 0] / rows[rows > 0]
    constant, accuracy = float(rows.max() / len(test.classes)), float((nearest == test.classes).mean())
    # Above the constant class, also if labels are unrelated to the class means or one class has nearly all rows.
    minimum = max((2 * constant + accuracy) / 3, min(constant + 0.01, (constant + 1) / 2))
    minima = Minima(math.ceil(minimum * 1_000) / 1_000, math.floor(recalls.min() * 10) / 100)
    return minima, (
        f"promotion: a version needs a test accuracy of {minima.minimum_accuracy:g} and a recall of "
        f"{minima.minimum_recall:g} in each class. The nearest class mean has {accuracy:.3f} and {recalls.min():.3f}, "
        f"the same class for every image {constant:.3f} and 0."
    )


def _scan(files: Sequence[Path], contract: DatasetContract) -> tuple[Scan, Sample]:
    scan = scan_split(files, contract)
    if scan.sample is None:  # `_load` has parsed every cell
        raise ValueError(f"expected {files[0].name} in the inferred format")
    return scan, scan.sample


def _divide(
    train: _Loaded, rows: int, contract: DatasetContract
) -> tuple[tuple[Sample, Sequence[Path]], tuple[Sample, Sequence[Path]]]:
    """Return the samples and Parquet files of two random parts of train. The second has ``rows`` rows, at most half."""
    order = np.random.default_rng(0).permutation(len(train.classes))
    size = max(1, min(rows, len(order) // 2))
    parts = []
    for name, selected in (("rest", order[size:]), ("drawn", order[:size])):
        path = train.files[0].with_name(f"{name}.parquet")
        columns = [train.classes[selected], *train.images[selected].T]
        pq.write_table(pa.table(dict(zip(contract.columns, map(np.ascontiguousarray, columns), strict=True))), path)
        parts.append((_scan([path], contract)[1], [path]))
    return parts[0], parts[1]


def _measure_leaks(
    train: tuple[Sample, Sequence[Path]], test: tuple[Sample, Sequence[Path]], contract: DatasetContract
) -> dict[str, Measurement]:
    """Measure copies and near duplicates of train images among test images."""
    sketches, rows = test[0].sketches, len(test[0].sketches.numbers)
    in_train = find_test_images_in_train(train[0].sketches, train[1], sketches, test[1], contract)
    return measure_leaks(duplicate_report(train[0].sketches, sketches, in_train), rows)


def _picture(train: _Loaded, contract: DatasetContract) -> tuple[str, ...]:
    """Return the first train image as text. The background is blank."""
    image = scale_pixels(train.images[:1], contract.scale)
    shades = (image * (len(_SHADES) - 1)).round().astype(int).reshape(contract.height, contract.width)
    title = f"first image of train, label {contract.class_labels[train.classes[0]]}:"
    return title, *("".join(_SHADES[shade] * 2 for shade in row).rstrip() for row in shades)


# --- TOML ---


def dataset_toml(contract: DatasetContract) -> str:
    """Return the dataset file of a contract that is not published, with comments."""

    def stated(values: Mapping[Any, Any]) -> list[str]:
        return [f"{key} = {inline(value)}" for key, value in values.items() if value is not None]

    def inline(value: Any) -> str:
        if isinstance(value, Mapping):
            return f"{{ {', '.join(stated(value))} }}"
        return json.dumps(value, ensure_ascii=False)

    def table(name: str, values: Mapping[Any, Any]) -> list[str]:
        return ["", f"[{name}]", *stated(values)]

    background = '"none"' if contract.background is None else contract.background
    lines = [
        f"# The dataset {contract.name}. docs/data.md describes the keys; `fashion-ann dataset show {contract.name}` "
        "prints the result.",
        f"height = {contract.height}",
        f"width = {contract.width}",
        "# Pixels are integers in this range. background: the value of empty areas, one of its ends, or none.",
        f"pixel_min = {contract.pixel_min}",
        f"pixel_max = {contract.pixel_max}",
        f"background = {background}",
        "# Names of the columns in the CSVs: the first pixel and two dots, or none for CSVs without a header.",
        f"columns = {json.dumps(contract.naming, ensure_ascii=False)}",
        f"label_column = {json.dumps(contract.label_column, ensure_ascii=False)}",
    ]
    if contract.transpose:
        lines += ["# The CSVs have the pixels column by column.", "transpose = true"]
    if contract.holdout is not None:
        lines += ["# About this share of the train rows is the test split.", f"holdout = {contract.holdout}"]
    lines += [
        "# The checks with their usual bounds: drawings on a background, or photographs.",
        f'kind = "{contract.kind}"',
        "# No class may have a larger share of the rows.",
        f"maximum_class_share = {contract.maximum_class_share}",
        "# Near duplicates differ by at most this share of the pixel range.",
        f"near_duplicate = {contract.near_duplicate}",
        "# The licence of the data and its limits, for the model card.",
        f"licence = {json.dumps(contract.licence, ensure_ascii=False)}",
        f"known_limits = {json.dumps(contract.known_limits, ensure_ascii=False)}",
    ]
    if contract.files:
        lines += table("files", dict(contract.files))
    lines += table("minimum_rows", dict(contract.minimum_rows))
    lines += [
        "",
        "# A version with a lower test accuracy, or a lower recall of a class, is rejected. docs/data.md describes how",
        "# `dataset init` infers both.",
    ]
    lines += table("promotion", asdict(contract.promotion))[1:]
    lines += ["", "# The name of each class by its label in the CSVs."]
    lines += table("labels", {label: contract.labels[label] for label in contract.class_labels})[1:]
    if contract.check_bounds:
        lines += ["", '# Checks with other bounds: "off", or such as { warn = 0.1, fail = 0.5 }.', "[checks]"]
        for name, entry in contract.check_bounds.items():
            lines.append(f"{name} = {inline(vars(entry)) if stated(vars(entry)) else inline('off')}")
    return "\n".join(lines) + "\n"
