"""Where the notebook runs, where its files lie there, and what is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

# Packages whose installed build belongs to the platform (CUDA, drivers): an install step must leave them as they are.
PLATFORM_PACKAGES = ("torch", "torchvision", "torchaudio", "triton", "numpy")


def where(environ: dict[str, str] | None = None) -> str:
    """Return `"kaggle"`, `"colab"` or `"local"`.

    Kaggle is asked first: its image is built from Colab's, so Colab's modules and variables may be found there too,
    while Colab never sets Kaggle's.
    """
    environ = os.environ if environ is None else environ
    if "KAGGLE_KERNEL_RUN_TYPE" in environ or "KAGGLE_URL_BASE" in environ:
        return "kaggle"
    if "COLAB_RELEASE_TAG" in environ or "COLAB_GPU" in environ:
        return "colab"
    return "local"


def default_out_dir(place: str | None = None) -> Path:
    """Folder for what a run writes: the one that survives the session on Kaggle, else one that is easy to find."""
    folders = {"kaggle": "/kaggle/working/outputs", "colab": "/content/outputs", "local": "outputs"}
    return Path(folders[place or where()])


def input_folders(place: str | None = None, kaggle_input: Path = Path("/kaggle/input")) -> list[Path]:
    """Folders that may hold the user's files, best first: attached Kaggle inputs, then `./data`.

    Kaggle mounts an input either as `/kaggle/input/<name>` or, since 2025, as `/kaggle/input/<kind>/<owner>/<name>`;
    both depths are listed, `cifar-10` first.
    """
    attached = []
    if (place or where()) == "kaggle" and kaggle_input.is_dir():
        nested = [path for pattern in ("*", "*/*/*") for path in sorted(kaggle_input.glob(pattern)) if path.is_dir()]
        attached = [kaggle_input / "cifar-10", *(path for path in nested if path != kaggle_input / "cifar-10")]
    return [*attached, Path("data")]


def ensure_packages(**modules: str) -> list[str]:
    """Install the packages whose module cannot be found or is too old, and nothing else.

    `ensure_packages(timm="timm>=1.0.12", cv2="opencv-python")` maps an importable module to the requirement that
    brings it. What the platform brought (torch, numpy, ...) is pinned to its installed version for pip's resolver, so
    that nothing can replace it, and packages are built with what is installed: sam2's build asks for torch, of which
    pip would otherwise fetch another one with its CUDA libraries. Wheels in attached Kaggle inputs (`pip wheel -r
    requirements.txt` makes them) are tried first, without internet. Returns the requirements that were installed.
    Raises `RuntimeError` with the command to run when pip fails, which without internet and wheels it does.
    """
    missing = [requirement for module, requirement in modules.items() if not _is_there(module, requirement)]
    if not missing:
        return []
    print(f"installing {', '.join(missing)} ...")
    if tools := [name for name in ("setuptools", "wheel") if importlib.util.find_spec(name) is None]:
        _pip_install(tools)
    _pip_install(missing)
    importlib.invalidate_caches()
    if stale := [module for module, requirement in modules.items() if requirement in missing and module in sys.modules]:
        print(f"{', '.join(stale)} had been imported before: restart the kernel, then run all again")
    return missing


def _is_there(module: str, requirement: str) -> bool:
    """Whether a module can be imported, in a version that will do if its distribution is known. A folder that merely
    has its name, such as a clone of a repository, is none."""
    spec, wanted = importlib.util.find_spec(module), Requirement(requirement)
    version = None if wanted.name in PLATFORM_PACKAGES else installed_version(wanted.name)
    if spec is None or spec.origin is None:
        return False
    return version is None or wanted.specifier.contains(version, prereleases=True)


def wheel_folders(folders: list[Path]) -> list[Path]:
    """Those of the folders, and of the folders in them, that hold wheels."""
    found = (wheel.parent for folder in folders for level in ("*.whl", "*/*.whl") for wheel in folder.glob(level))
    return sorted(set(found))


def _pip_install(requirements: list[str]) -> None:
    """From attached wheels if they are enough, else with internet."""
    wheels = [f"--find-links={folder}" for folder in wheel_folders(input_folders())]
    if wheels and not _pip([*wheels, "--no-index", *requirements]):
        return
    if reason := _pip([*wheels, *requirements]):
        raise RuntimeError(
            f"{', '.join(requirements)} could not be installed ({reason}). With internet: pip install "
            f"--no-build-isolation {' '.join(requirements)}. On Kaggle without internet: turn it on under Settings, or "
            "attach an input with the wheels that `pip wheel -r requirements.txt` makes where there is internet."
        )


def _pip(arguments: list[str]) -> str:
    """Run `pip install`; returns what it complains of, or nothing."""
    pins = [f"{name}=={version}" for name in PLATFORM_PACKAGES if (version := installed_version(name))]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(pins) + "\n")
        options = ["--quiet", "--no-build-isolation", "--constraint", str(constraints)]
        command = [sys.executable, "-m", "pip", "install", *options, *arguments]
        done = subprocess.run(command, text=True, stderr=subprocess.PIPE)
    return (done.stderr.strip() or "no message").splitlines()[-1] if done.returncode else ""


def is_interactive(environ: dict[str, str] | None = None) -> bool:
    """Whether widgets can be shown and somebody may use them: in Jupyter, on Colab, in Kaggle's editor, but not where
    papermill, nbconvert or Kaggle's *Save & Run All* executes the notebook."""
    environ = os.environ if environ is None else environ
    if importlib.util.find_spec("ipywidgets") is None:
        return False
    place = where(environ)
    if place == "kaggle":
        return environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Interactive"
    return place == "colab" or "JPY_SESSION_NAME" in environ  # Jupyter's server sets it for its kernels


def installed_version(package: str) -> str | None:
    """Version of an installed distribution, `None` where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(*packages: str) -> dict[str, str]:
    """Python's version and those of the named distributions (absent ones are left out), for a figure's caption."""
    found = {name: version for name in packages if (version := installed_version(name))}
    return {"python": platform.python_version(), **found}
