import numpy as np
import numpy.typing as npt
import pytest

from tasks.model.disturbances import DISTURBED_IMAGES, disturb_each

IMAGES = (np.random.default_rng(0).integers(0, 256, (50, 28, 84)) / 255).astype(np.float32)


def disturbed(images: npt.NDArray[np.float32] = IMAGES, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    return dict(disturb_each(images.copy(), np.random.default_rng(seed)))


def test_disturbs_images_of_any_shape_the_same_for_a_seed() -> None:
    for images in (IMAGES, IMAGES[:1, :2, :2], IMAGES[:3, :5, :]):
        first = disturbed(images)
        assert list(first) == list(DISTURBED_IMAGES)
        for name, result in first.items():
            assert (result.shape, result.dtype) == (images.shape, np.float32)
            assert np.array_equal(result, disturbed(images)[name])
            levels = result * 255
            assert levels == pytest.approx(np.rint(levels), abs=1e-4)
            assert result.min() >= 0
            assert result.max() <= 1
    other = disturbed(seed=1)
    changed = {name for name, result in disturbed().items() if not np.array_equal(result, other[name])}
    assert changed == {"shift_1", "shift_2", "rotation", "noise", "erased"}


def test_the_argument_is_unchanged() -> None:
    images = IMAGES.copy()
    list(disturb_each(images, np.random.default_rng(0)))
    assert np.array_equal(images, IMAGES)


@pytest.mark.parametrize(("name", "pixels"), [("shift_1", 1), ("shift_2", 2)])
def test_a_shift_moves_to_each_side_and_fills_with_background(name: str, pixels: int) -> None:
    sides = set()
    for image, shifted in zip(IMAGES, disturbed()[name], strict=True):
        for side, (axis, by) in {"top": (0, -1), "bottom": (0, 1), "left": (1, -1), "right": (1, 1)}.items():
            expected = np.roll(image, by * pixels, axis)
            border = [slice(None), slice(None)]
            border[axis] = slice(pixels) if by > 0 else slice(-pixels, None)
            expected[tuple(border)] = 0
            if np.array_equal(expected, shifted):
                sides.add(side)
                break
        else:
            pytest.fail("not shifted")
    assert sides == {"top", "bottom", "left", "right"}


def test_each_disturbance_does_what_its_text_states() -> None:
    bar = np.zeros((40, 28, 28), np.float32)
    bar[:, 4:24, 13:15] = 1
    results = disturbed(bar)
    assert np.array_equal(results["mirror"], bar[:, :, ::-1])
    # The bar leans by 10 degrees: over 18 rows its middle moves by 18 * tan(10 degrees).
    columns = np.arange(28)
    middle = (results["rotation"] * columns).sum(axis=2) / np.maximum(results["rotation"].sum(axis=2), 1e-6)
    lean = middle[:, 22] - middle[:, 4]
    assert np.abs(lean) == pytest.approx(np.full(40, 18 * np.tan(np.radians(10))), abs=0.3)
    assert {True, False} == set((lean > 0).tolist())
    flat = disturbed(np.full((40, 28, 28), 0.5, np.float32))
    assert np.std(flat["noise"]) == pytest.approx(0.1, abs=0.005)
    assert flat["contrast"] == pytest.approx(0.5, abs=0.002)
    assert np.unique(results["contrast"][0] - np.float32(bar[0].mean() / 2)).round(2).tolist() == [0, 0.5]
    assert [int((image == 0).sum()) for image in flat["erased"]] == [10 * 10] * 40
    assert len({image.tobytes() for image in flat["erased"]}) > 20
    assert results["blur"].max() < 0.75
    assert results["blur"].sum() == pytest.approx(bar.sum(), rel=0.01)
