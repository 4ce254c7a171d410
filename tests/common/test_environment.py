"""Kaggle, Colab and local told apart; helpers found wherever they may lie; only what is missing is installed."""

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from helpers.common import environment
from nbload import ROOT

PLACES = ("KAGGLE_KERNEL_RUN_TYPE", "KAGGLE_URL_BASE", "COLAB_RELEASE_TAG", "COLAB_GPU")


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, "local"),
        ({"COLAB_RELEASE_TAG": "release-colab_20260101"}, "colab"),
        ({"KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, "kaggle"),
        (
            {"KAGGLE_KERNEL_RUN_TYPE": "Batch", "COLAB_RELEASE_TAG": "release-colab_20260101", "COLAB_GPU": "1"},
            "kaggle",
        ),
        ({"KAGGLE_USERNAME": "me", "KAGGLE_KEY": "k"}, "local"),  # the API's credentials, on a laptop
    ],
)
def test_where(monkeypatch, environ, place):
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert environment.where() == place
    folders = {"kaggle": "/kaggle/working/outputs", "colab": "/content/outputs", "local": "outputs"}
    assert environment.default_out_dir() == Path(folders[place])


def test_input_folders(tmp_path, monkeypatch):
    for name in ("other", "cifar-10", "datasets/somebody/cifar10"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(environment, "KAGGLE_INPUT", tmp_path)
    monkeypatch.setattr(environment, "where", lambda: "kaggle")
    folders = environment.input_folders()
    assert folders[0] == tmp_path / "cifar-10" and folders[-1] == Path("data")
    assert {tmp_path / "other", tmp_path / "datasets/somebody/cifar10"} <= set(folders)
    assert len(folders) == len(set(folders))
    monkeypatch.setattr(environment, "where", lambda: "local")
    assert environment.input_folders() == [Path("data")]


def make_wheel(folder: Path, name: str, requires: str = "") -> Path:
    """A wheel with one empty module, so that installing can be tried without an index."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + (
        f"Requires-Dist: {requires}\n" if requires else ""
    )
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def offline_pip(tmp_path, monkeypatch):
    """pip that installs into a folder of the test, from wheels that lie there, without an index."""
    (tmp_path / "site").mkdir()
    settings = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_TARGET": str(tmp_path / "site"),
        "PIP_EXTRA_INDEX_URL": "",
    }
    for name, value in (settings | {"PIP_CONFIG_FILE": "/dev/null"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path


@pytest.fixture
def ensure(tmp_path, monkeypatch):
    """`ensure_packages` with another requirements.txt: the first argument."""

    def call(requirements, *modules):
        (tmp_path / "requirements.txt").write_text(requirements)
        monkeypatch.setattr(environment, "REQUIREMENTS", tmp_path / "requirements.txt")
        return environment.ensure_packages(*modules)

    return call


def test_every_module_of_the_notebooks_is_listed(monkeypatch):
    monkeypatch.setattr(environment, "_is_there", lambda *_: True)
    modules = ("tqdm", "matplotlib", "huggingface_hub", "pyarrow", "cv2", "transformers", "pycocotools", "av", "PIL")
    assert environment.ensure_packages(*modules, "groundingdino", "sam2") == []


def test_what_is_there_is_not_installed_again(ensure, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    assert environment.ensure_packages("cv2", "torch") == []
    assert ensure("torch>=99  # the platform's\n\n# more\njson\n", "torch", "json") == []


def test_what_is_missing_is_installed(offline_pip, ensure):
    make_wheel(offline_pip, "tiny_absent_module")
    assert ensure("torch\ntiny_absent_module", "torch", "tiny_absent_module") == ["tiny_absent_module"]
    assert (offline_pip / "site" / "tiny_absent_module.py").is_file()


def test_what_is_too_old_is_replaced(offline_pip, ensure):
    site = offline_pip / "site"
    (site / "tiny_old_module.py").write_text("")
    old = site / "tiny_old_module-0.9.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny_old_module\nVersion: 0.9\n")
    assert ensure("tiny_old_module>=0.9", "tiny_old_module") == []
    make_wheel(offline_pip, "tiny_old_module")
    assert ensure("tiny_old_module>=1", "tiny_old_module") == ["tiny_old_module>=1"]
    assert (site / "tiny_old_module-1.0.dist-info").is_dir()


def test_a_folder_of_the_same_name_is_no_package(offline_pip, ensure, monkeypatch):
    (offline_pip / "here" / "tiny_cloned_module").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(offline_pip / "here"))
    make_wheel(offline_pip, "tiny_cloned_module")
    assert ensure("tiny_cloned_module", "tiny_cloned_module") == ["tiny_cloned_module"]


def test_wheels_of_an_attached_input_need_no_internet(offline_pip, ensure, tmp_path_factory, monkeypatch):
    attached = tmp_path_factory.mktemp("input") / "my-wheels"
    (attached / "wheels").mkdir(parents=True)
    make_wheel(attached / "wheels", "tiny_attached_module")
    monkeypatch.setattr(environment, "input_folders", lambda: [attached, attached / "no such folder"])
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.delenv("PIP_NO_INDEX")
    assert ensure("tiny_attached_module>=1", "tiny_attached_module") == ["tiny_attached_module>=1"]
    assert (offline_pip / "site" / "tiny_attached_module.py").is_file()


def test_a_dependency_cannot_replace_torch(offline_pip, ensure):
    make_wheel(offline_pip, "wants_another_torch", requires="torch==1.0")
    make_wheel(offline_pip, "torch")
    with pytest.raises(RuntimeError, match="wants_another_torch could not be installed"):
        ensure("wants_another_torch", "wants_another_torch")
    assert not (offline_pip / "site" / "torch.py").exists()


def test_a_build_uses_what_is_installed(offline_pip, ensure):
    """As sam2's needs torch: there is no index to fetch another one from."""
    files = {
        "setup.py": "import numpy\nimport setuptools\nsetuptools.setup(py_modules=['tiny_built_module'])\n",
        "pyproject.toml": '[build-system]\nrequires = ["setuptools", "numpy"]\n'
        'build-backend = "setuptools.build_meta"\n[project]\nname = "tiny_built_module"\nversion = "1.0"\n',
        "tiny_built_module.py": "",
        "PKG-INFO": "Metadata-Version: 2.1\nName: tiny_built_module\nVersion: 1.0\n",
    }
    with tarfile.open(offline_pip / "tiny_built_module-1.0.tar.gz", "w:gz") as sdist:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"tiny_built_module-1.0/{name}")
            entry.size = len(text)
            sdist.addfile(entry, io.BytesIO(text.encode()))
    assert ensure("tiny_built_module", "tiny_built_module") == ["tiny_built_module"]
    assert (offline_pip / "site" / "tiny_built_module.py").is_file()


def test_without_an_index_the_error_says_what_to_do(offline_pip, ensure):
    with pytest.raises(RuntimeError, match="pip install --no-build-isolation no_such_thing>=2"):
        ensure("no_such_thing>=2", "no_such_thing")


def test_versions_name_what_is_installed():
    found = environment.versions("torch", "no-such-package")
    assert set(found) == {"python", "torch"} and found["python"] == sys.version.split()[0]


def test_helpers_touch_neither_network_nor_gpu_when_imported():
    """A fresh interpreter in which sockets and CUDA initialisation raise imports every helper."""
    code = """
import pkgutil, socket, sys, importlib
import torch, matplotlib
def forbidden(*args, **kwargs): raise AssertionError("touched at import")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = forbidden
torch.cuda._lazy_init = torch.cuda.is_available = torch.cuda.device_count = forbidden
import helpers
names = [m.name for m in pkgutil.walk_packages(helpers.__path__, "helpers.")]
assert len(names) > 30
for name in names: importlib.import_module(name)
print("clean")
"""
    root = Path(environment.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "clean\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="libgomp is torch's on Linux")
def test_threads_that_wait_spin_for_a_moment_only():
    given = {**os.environ, "OMP_DISPLAY_ENV": "VERBOSE"}
    given.pop("GOMP_SPINCOUNT", None)
    for own, expected in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        command = [sys.executable, "-c", "import helpers, torch"]  # the notebooks import helpers first, too
        done = subprocess.run(command, env=given | own, cwd=ROOT, text=True, capture_output=True, check=True)
        assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr
