"""Images as batches: addressable, shared by processes, split without overlap; augmentation keeps what it promises to keep."""

import numpy as np
import pytest
from PIL import Image

from paperlab.config import base_config, resolve
from paperlab.data import augment, images
from paperlab.data.rand_augment import OPERATIONS, rand_augment
from paperlab.data.synthetic import shapes
from paperlab.errors import ConfigError


def opened(**changes):
    config = base_config(task="classification", model="vit")
    config.model.patch = 1
    config.data.update(batch_size=8, **changes)
    return images.Images(resolve(config).data)


def folder_of(root, sides=(40, 30), classes=("cat", "dog"), splits=("train", "val"), count=6):
    for split in splits:
        for label, name in enumerate(classes):
            place = root / split / name
            place.mkdir(parents=True)
            for i in range(count):
                colour = (40 * i, 255 * label, 128)
                Image.new("RGB", sides, colour).save(place / f"{i}.png")
    return root


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
    ("changes", "shape", "dtype"),
    [
        ({"source": "digits"}, (8, 8, 1), np.uint8),
        ({"source": "digits", "size": 12, "flip": 0.5, "erasing": 0.5}, (12, 12, 1), np.uint8),
        ({"source": "shapes", "color_jitter": 0.3, "mixup": 0.8, "cutmix": 1.0}, (32, 32, 3), np.uint8),
        ({"source": "arrow", "size": 180}, (180, 180, 3), np.uint8),
        ({"source": "arrow_tokens", "mixup": 1.0, "train_examples": 50}, (8, 8, 4), np.float32),
    ],
)
def test_a_batch_is_a_function_of_its_number_on_any_number_of_processes(changes, shape, dtype):
    whole = opened(**changes).batches("train")
    batch = whole[5]
    same(batch, opened(**changes).batches("train")[5])
    assert batch["images"].shape == (8, *shape)
    assert batch["images"].dtype == dtype
    assert images.spec(opened(**changes).data) == ((8, *shape), dtype)
    parts = [opened(**changes).batches("train", p, 2)[5] for p in range(2)]
    same(batch, {name: np.concatenate([part[name] for part in parts]) for name in batch})
    assert (batch["images"] != whole[6]["images"]).any()
    assert all((batch["images"][i] != batch["images"][j]).any() for i in range(8) for j in range(i))


def test_an_epoch_sees_every_example_once_and_in_an_order_of_its_own():
    source = opened(source="digits")
    count = source.source.count("train")
    epochs = [[images.shuffled(e * count + i, count, 3) for i in range(count)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(count))
    assert epochs[0] != epochs[1]
    assert epochs[0] != [images.shuffled(i, count, 4) for i in range(count)]


def test_an_evaluated_split_is_read_once_and_filled_up_without_weight():
    source = opened(source="digits", validation_share=0.1)
    count = source.source.count("validation")
    batches = source.batches("validation")
    assert count == 180
    assert len(batches) == 23
    weights = np.concatenate([batches[i]["weights"] for i in range(len(batches))])
    assert weights.sum() == count
    assert (np.diff(weights) <= 0).all()
    train = {source.source.example("train", i, 8)[0].tobytes() for i in range(source.source.count("train"))}
    held = [source.source.example("validation", i, 8)[0].tobytes() for i in range(count)]
    assert not train & set(held)


def test_repeats_show_the_same_images_with_other_augmentation():
    batch = opened(source="digits", size=16, repeats=3, flip=0.5, erasing=1.0).batches("train")[2]
    labels = batch["labels"]
    np.testing.assert_array_equal(labels[:3], labels[3:6])
    np.testing.assert_array_equal(labels[:2], labels[6:])
    assert (batch["images"][0] != batch["images"][3]).any()
    plain = opened(source="digits", repeats=3).batches("train")[2]["images"]
    np.testing.assert_array_equal(plain[0], plain[3])


def test_evaluated_splits_of_generated_images_are_larger_where_they_say_so_and_never_trained_on():
    source = opened(source="arrow_tokens", evaluation_examples=20, extrapolation_size=12)
    shapes_of = {split: source.batches(split)[0]["images"].shape[1] for split in images.splits_of(source.data)}
    assert shapes_of == {"validation": 8, "extrapolation": 12, "test": 8, "test_extrapolation": 12}
    assert len(source.batches("test")) == 3
    with pytest.raises(ConfigError, match="seed=100042"):
        opened(source="arrow_tokens", seed=100_042)


def test_a_folder_of_classes(tmp_path):
    source = opened(source="folder", path=str(folder_of(tmp_path)), size=24)
    assert source.source.class_names == ("cat", "dog")
    assert source.source.count("train") == source.source.count("validation") == 12
    batch = source.batches("validation")[0]
    assert batch["images"].shape == (8, 24, 24, 3)
    np.testing.assert_array_equal(batch["labels"], [0] * 6 + [1] * 2)
    np.testing.assert_array_equal(batch["images"][:, 0, 0, 1], 255 * batch["labels"])
    kinds = {"crop": "resized", "flip": 0.5, "three_augment": True, "rand_augment": 9.0, "color_jitter": 0.3}
    busy = opened(source="folder", path=str(tmp_path), size=24, erasing=0.25, workers=3, **kinds)
    same(
        busy.batches("train")[1],
        opened(source="folder", path=str(tmp_path), size=24, erasing=0.25, **kinds).batches("train")[1],
    )
    assert (
        opened(source="folder", path=str(tmp_path), evaluation_size=32).batches("validation")[0]["images"].shape[1]
        == 32
    )


def test_a_folder_without_splits_is_split_by_names(tmp_path):
    folder_of(tmp_path, splits=("",), count=30)
    source = opened(source="folder", path=str(tmp_path), size=16, validation_share=0.3).source
    files = {split: set(source._splits[split][0]) for split in ("train", "validation")}
    assert len(files["train"]) + len(files["validation"]) == 60
    assert not files["train"] & files["validation"]
    assert 8 < len(files["validation"]) < 30


def broken(root):
    folder_of(root)
    (root / "train" / "cat" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n not an image")
    return root


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nothing", "is no folder"),
        (lambda root: folder_of(root, splits=("train",)), "has a folder train but none called val"),
        (lambda root: folder_of(root, classes=("cat",)), "holds 1 folders of classes"),
        (lambda root: folder_of(root, count=0), "no images in"),
        (broken, "cannot read the image .*0.png"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path, make, message):
    config = {"source": "folder", "path": str(make(tmp_path)), "size": 8}
    with pytest.raises(ConfigError, match=message) as raised:
        list(opened(**config).batches("train")[:3])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "digit"}, "did you mean 'digits'"),
        ({"source": "folder"}, "give the folder"),
        ({"path": "x"}, "source='folder' alone"),
        ({"classes": 7}, "digits has 10"),
        ({"source": "arrow", "size": 100}, "data.size=100: arrow takes at least 180"),
        ({"source": "shapes", "extrapolation_size": 3}, "extrapolation_size=3"),
        ({"extrapolation_size": 16}, "only generated sources"),
        ({"source": "shapes", "evaluation_size": 16}, "see extrapolation_size"),
        ({"source": "arrow_tokens", "flip": 0.5}, "tokens are no picture"),
        ({"source": "shapes", "crop": "resized"}, "drawn at its size"),
        ({"rand_augment": 9.0}, "is grey"),
        ({"mixup": 0.8, "batch_size": 7}, "made of pairs"),
        ({"repeats": 9, "batch_size": 8}, "at most batch_size"),
        ({"crop_area": 0.0}, "above 0"),
        ({"evaluation_crop": 0.0}, "above 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(changes, message):
    config = base_config(task="classification", model="vit")
    config.model.patch = 1
    config.data.update(changes)
    with pytest.raises(ConfigError, match=message):
        resolve(config)


def test_evaluators_of_splits_that_there_are_not_and_rows_that_cannot_be_shared():
    config = base_config(task="classification", model="vit")
    config.evaluators.val.split = "extrapolation"
    with pytest.raises(ConfigError, match="split='extrapolation'"):
        resolve(config)
    with pytest.raises(ConfigError, match="positive multiple of 3"):
        opened().batches("train", 0, 3)
    with pytest.raises(ConfigError, match="positive multiple of 16"):
        opened(mixup=1.0).batches("train", 0, 8)


def test_mixup_and_cutmix_count_what_they_took():
    rng = np.random.default_rng(0)
    pictures = np.zeros((4, 20, 20, 1), np.float32)
    pictures[1::2] = 1
    labels = np.array([3, 5, 7, 9])
    cut = []
    for _ in range(40):
        mixed, partners, share = augment.mix_pairs(rng, pictures, labels, 0.8, 1.0)
        np.testing.assert_array_equal(partners, [5, 3, 9, 7])
        np.testing.assert_allclose(mixed[0].mean(), 1 - share[0], atol=1e-6)
        np.testing.assert_allclose(mixed[1].mean(), share[1], atol=1e-6)
        cut.append(set(np.unique(mixed)) <= {0.0, 1.0})
    assert 8 < sum(cut) < 32
    same_images, _, ones = augment.mix_pairs(rng, pictures, labels, 0, 0)
    assert same_images is pictures
    assert (ones == 1).all()


def test_shares_of_mixup_are_beta_distributed():
    rng = np.random.default_rng(1)
    pictures = np.zeros((2, 1, 1, 1), np.uint8)
    shares = np.array([augment.mix_pairs(rng, pictures, np.arange(2), 0.8, 0)[2][0] for _ in range(4000)])
    np.testing.assert_allclose([shares.mean(), shares.var()], [0.5, 1 / (4 * 2.6)], atol=0.01)


def picture(side=(48, 36)):
    x, y = np.meshgrid(np.arange(side[0]), np.arange(side[1]))
    return Image.fromarray(np.stack([5 * x, 6 * y, (3 * x * y) % 251], -1).astype(np.uint8))


@pytest.mark.parametrize("name", sorted(OPERATIONS))
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_every_operation_of_rand_augment_keeps_size_and_mode(name, strength):
    import PIL.Image
    import PIL.ImageEnhance
    import PIL.ImageOps

    before = picture()
    for sign in (1, -1):
        after = OPERATIONS[name](PIL, before, strength, sign)
        assert (after.size, after.mode) == (before.size, before.mode)
        unchanged = np.array_equal(np.asarray(after), np.asarray(before))
        assert unchanged == (strength == 0 and name not in ("autocontrast", "equalize", "invert", "posterize"))


def test_augmentations_are_functions_of_the_generator():
    kinds = {
        "resized": lambda rng, image: augment.random_resized_crop(rng, image, 24, 0.08),
        "padded": lambda rng, image: augment.padded_crop(rng, image, 24),
        "flip": augment.flip,
        "three": augment.three_augment,
        "jitter": lambda rng, image: augment.colour_jitter(rng, image, 0.5),
        "rand": rand_augment,
    }
    for name, apply in kinds.items():
        draws = [np.asarray(apply(np.random.default_rng(i % 12), picture())) for i in range(24)]
        np.testing.assert_array_equal(draws[3], draws[15])
        assert len({draw.tobytes() for draw in draws}) > 1, name
        assert draws[0].shape == ((24, 24, 3) if name in ("resized", "padded") else (36, 48, 3))


def test_the_middle_is_the_middle_and_a_padded_crop_contains_most_of_it():
    array = np.asarray(augment.centre_crop(picture(), 36))
    np.testing.assert_array_equal(array, np.asarray(picture())[:, 6:42])
    assert augment.centre_crop(picture(), 18, 0.5).size == (18, 18)
    np.testing.assert_array_equal(
        np.asarray(augment.centre_crop(picture(), 18, 0.5)), np.asarray(picture())[9:27, 15:33]
    )
    small = np.asarray(augment.padded_crop(np.random.default_rng(0), picture((40, 40)), 40))
    assert small.shape == (40, 40, 3)


def test_erasing_leaves_the_rest():
    rng, grey = np.random.default_rng(0), np.full((40, 40, 3), 7, np.uint8)
    changed = [(augment.random_erasing(rng, grey, 1.0) != grey).any(-1).mean() for _ in range(50)]
    assert 0.01 < min(changed) < max(changed) < 0.4
    assert augment.random_erasing(rng, grey, 0.0) is grey


@pytest.mark.parametrize("size", [20, 32, 64])
def test_shapes_fit_and_keep_their_size_on_any_canvas(size):
    found = [shapes.example(0, i, size) for i in range(200)]
    assert {label for _, label in found} == set(range(8))
    assert found[0][0].shape == (size, size, 3)
    areas = []
    for image, label in found:
        if label == 0:
            ground = np.median(image.reshape(-1, 3), 0) if size > 20 else None
            areas += [] if ground is None else [(abs(image - ground).mean(-1) > 35).sum()]
    assert all(30 < area < 220 for area in areas)
