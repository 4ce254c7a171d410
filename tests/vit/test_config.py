"""Presets, overrides and the complaints about settings that cannot work."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from helpers.vit.config import OTHER_SETTINGS, check_config, check_resumable, collect, fit_to_images, make_config, start

RECIPE = {"lr": (1, 2, 3), "pool": ("cls", "mean", "cls")}
PRESETS = ("quick", "t4", "best")


def test_what_is_given_overrides_the_preset():
    cfg = make_config(RECIPE, PRESETS, "t4", {"lr": 5, "pool": None, "data_root": None, "seed": 0}, 0)
    assert cfg.given == ["lr", "seed"]
    del cfg.given
    assert vars(cfg) == {"preset": "t4", "lr": 5, "pool": "mean", "data_root": None, "seed": 0}


@pytest.mark.parametrize("zero", [0, 0.0, False])
def test_zero_and_false_are_given_values(zero):
    assert make_config(RECIPE, PRESETS, "best", {"lr": zero}, 0).lr == zero


@pytest.mark.parametrize(("memory", "preset"), [(0, "quick"), (15.8, "t4"), (85, "best")])
def test_auto_goes_by_the_gpu(memory, preset):
    assert make_config(RECIPE, PRESETS, "auto", {}, memory).preset == preset


def test_a_misspelt_setting_is_named():
    with pytest.raises(ValueError, match="'poll' is no setting: did you mean 'pool'"):
        make_config(RECIPE, PRESETS, "quick", {"poll": "cls"}, 0)


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset='fast': expected 'auto' or one of 'quick', 't4', 'best'"):
        make_config(RECIPE, PRESETS, "fast", {}, 0)


def checked(q1, preset="quick", **given):
    cfg = make_config(q1.RECIPE, q1.PRESETS, preset, dict.fromkeys(OTHER_SETTINGS) | {"seed": 0} | given, 0)
    check_config(cfg)
    return cfg


@pytest.mark.parametrize("preset", PRESETS)
def test_the_presets_hold_together(q1, preset):
    checked(q1, preset)


IMPOSSIBLE = {
    "patch_size": [5, 0], "patch_stride": [0, 9], "embed_dim": [97], "depth": [0], "pool": ["max"], "drop_path": [1.0],
    "batch_size": [7, 0, 12.5], "epochs": [0, float("inf")], "lr": [-1e-3], "layer_decay": [0], "ema_decay": [1],
    "max_minutes": [-1, "20", float("inf")], "randaug_n": [-1, 1.5], "randaug_m": [11], "erase_prob": [1.5],
    "mixup": [-0.1], "label_smoothing": [1], "train_size": [1, 10.5], "val_size": [-1, 0.1], "tta": [9, 1.5],
    "seed": [None, "1", -1, 2**32, True], "min_lr": [1.0, "0"], "weight_decay": [float("inf")],
    "mlp_ratio": [float("inf"), float("nan")], "warmup_epochs": [float("inf")],
    "download": ["True", "false", "./data", 2, ""], "compile": ["yes"], "all_gpus": ["2"], "mimetic": ["False", 0.5],
    "amp": ["true", "fp8", "", 2], "resume": ["true", "False", "", 2, "/nowhere/last.pth"],
    "data_root": ["", 5, True], "out_dir": [" ", 7], "checkpoint": ["", False], "init_weights": ["", "/nowhere.pth"],
    "pictures": ["", 3],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in IMPOSSIBLE.items() for value in values])
def test_what_cannot_work_is_named_with_its_value(q1, name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}: expected")):
        checked(q1, **{name: value})


def test_flags_and_resume(q1, tmp_path):
    cfg = checked(q1, download=False, compile=1, all_gpus=True, amp="bf16", mixup=False, epochs=10**12)
    assert cfg.resume is False and cfg.download is False
    (tmp_path / "last.pth").write_bytes(b"")
    for given in (tmp_path / "last.pth", str(tmp_path)):  # the file, or the folder it is in
        assert checked(q1, resume=given).resume == str(tmp_path / "last.pth")
    assert checked(q1, resume=1).resume is True


def test_pictures_are_looked_for_before_training(q1, tmp_path):
    with pytest.raises(ValueError, match=r"pictures='.*jpg': .*no image there; found: nothing"):
        checked(q1, pictures=str(tmp_path / "*.jpg"))
    (tmp_path / "a.jpg").write_bytes(b"")
    checked(q1, pictures=tmp_path)


def test_half_precision_on_a_cpu_is_warned_of(q1, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    configured(q1, amp="fp16")
    assert 'warning: amp="fp16" takes many times as long on a CPU' in capsys.readouterr().out
    configured(q1)
    assert "warning" not in capsys.readouterr().out


def test_an_output_folder_that_is_a_file_is_named(q1, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("")
    with pytest.raises(OSError, match=r"out_dir='taken': nothing can be written there"):
        configured(q1, out_dir="taken")


def test_an_evaluation_writes_below_the_output_folder(q1, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert configured(q1, out_dir="runs", checkpoint="a.pth").out_dir == "runs/evaluation"
    assert configured(q1, out_dir="runs").out_dir == "runs"


def test_test_images_alone_are_enough_for_an_evaluation(q1, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    cfg = configured(q1, checkpoint="a.pth")
    capsys.readouterr()
    fit_to_images(cfg, images(count=0))
    assert capsys.readouterr().out == "no images to train on, 50 to test on\n"


def test_paths_become_text(q1):
    """A checkpoint with a Path in it could not be read back with weights_only=True."""
    cfg = checked(q1, data_root=Path("data"), out_dir=Path("out"))
    assert (cfg.data_root, cfg.out_dir) == ("data", "out")
    cfg = checked(q1, data_root="./data", out_dir="~/runs")
    assert (cfg.data_root, cfg.out_dir) == ("./data", str(Path.home() / "runs"))


def configured(q1, edits=(), **given):
    """`cfg` as the notebook's cells make it: `given` set among its parameters, then `edits` on its attributes."""
    names = {"RECIPE": q1.RECIPE, "data_root": None, "preset": "quick", "download": False, "seed": 0} | given
    cfg = collect(names, q1.RECIPE)
    for name, value in dict(edits).items():
        setattr(cfg, name, value)
    return start(cfg, q1.RECIPE, q1.PRESETS)[0]


def test_settings_edited_as_attributes(q1, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfg = configured(q1, {"preset": "best", "lr": 0.5, "data_root": "./data", "checkpoint": "a.pth"})
    assert (cfg.preset, cfg.lr, cfg.data_root, cfg.embed_dim) == ("best", 0.5, "./data", 384)
    assert cfg.out_dir == "outputs/evaluation"  # not over the files of the training run


def test_the_seed_holds_from_the_start(q1, monkeypatch, tmp_path):
    """What is drawn for the eye before training (the figure of augmented images) is the same each time, too."""
    monkeypatch.chdir(tmp_path)
    drawn = [(configured(q1, seed=seed), torch.rand(3).tolist())[1] for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_settings_of_the_table_can_be_given_without_standing_in_the_parameters_cell(q1, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfg = configured(q1, mixup=0.3, cfg=None, train_set="of an earlier run of the cells")
    assert cfg.mixup == 0.3 and "mixup" in cfg.given
    with pytest.raises(ValueError, match="'epoch' is no setting: did you mean 'epochs'"):
        configured(q1, epoch=3)
    configured(q1, _mine=3)


def images(name="CIFAR-10", count=100):
    return SimpleNamespace(
        name=name,
        train_labels=torch.arange(count) % 10,
        test_labels=torch.arange(50),
        classes="abcdefghij",
        train_images=torch.zeros(count, dtype=torch.uint8),
    )


def test_settings_are_fitted_to_the_images(q1, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    cfg = configured(q1)
    fit_to_images(cfg, images())
    assert (cfg.val_size, cfg.batch_size, cfg.max_minutes) == (20, 64, 8) and "80 + 20 of 10 classes" in cfg.images
    assert "80 images to train on, 20 held out, 50 to test on" in capsys.readouterr().out
    for given, minutes in (({}, 2), ({"max_minutes": 8}, 8), ({"max_minutes": 0.5}, 0.5)):
        cfg = configured(q1, batch_size=512, **given)
        fit_to_images(cfg, images("ten shapes (synthetic)"))
        assert (cfg.batch_size, cfg.max_minutes) == (80, minutes)


def test_a_run_is_resumed_with_its_own_settings_only():
    stored = {"lr": 1, "depth": 3, "epochs": 10, "out_dir": "a"}
    check_resumable(SimpleNamespace(lr=1, depth=3, epochs=20, out_dir="b"), stored, "last.pth")
    with pytest.raises(ValueError, match=r"last.pth is of a run with depth=3 \(now 4\).*resume=False"):
        check_resumable(SimpleNamespace(lr=1, depth=4, epochs=20, out_dir="b"), stored, "last.pth")
    stored = {"images": "CIFAR-10, checksum 1", "data_root": "batches"}
    now = SimpleNamespace(images="CIFAR-10, checksum 2", data_root="folders")
    with pytest.raises(
        ValueError, match=r"images='CIFAR-10, checksum 1' \(now .* the data_root it began with \('batches' there\)"
    ):
        check_resumable(now, stored, "last.pth")
