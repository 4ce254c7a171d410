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
REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "PIL": "pillow",
    "groundingdino": "groundingdino-py",
}  # named unlike the module
KAGGLE_INPUT = Path("/kaggle/input")


def where() -> str:
    """Return `"kaggle"`, `"colab"` or `"local"`.

    Kaggle is asked first: its image is built from Colab's, so Colab's modules and variables may be found there too,
    while Colab never sets Kaggle's.
    """
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ or "KAGGLE_URL_BASE" in os.environ:
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ or "COLAB_GPU" in os.environ else "local"


def default_out_dir() -> Path:
    """Return the folder for what a run writes: on Kaggle the one that survives the session."""
    return Path({"kaggle": "/kaggle/working/outputs", "colab": "/content/outputs", "local": "outputs"}[where()])


def input_folders() -> list[Path]:
    """Return the folders that may hold the user's files, best first: attached Kaggle inputs, then `./data`.

    Kaggle mounts an input either as `/kaggle/input/<name>` or, since 2025, as `/kaggle/input/<kind>/<owner>/<name>`;
    both depths are listed, `cifar-10` first.
    """
    found = [path for depth in ("*", "*/*/*") for path in sorted(KAGGLE_INPUT.glob(depth)) if path.is_dir()]
    found.sort(key=lambda path: path != KAGGLE_INPUT / "cifar-10")
    return [*(found if where() == "kaggle" else []), Path("data")]


def ensure_packages(*modules: str) -> list[str]:
    """Install the packages of the modules that cannot be found or are too old by requirements.txt, and nothing else.

    What the platform brought (torch, numpy, ...) is pinned to its installed version for pip's resolver, so that nothing
    can replace it, and packages are built with what is installed: sam2's build asks for torch, of which pip would
    otherwise fetch another one with its CUDA libraries. Wheels in attached Kaggle inputs (`pip wheel -r
    requirements.txt` makes them) are tried first, without internet. Returns the requirements that were installed.
    Raises `RuntimeError` with the command to run when pip fails, which without internet and wheels it does.
    """
    lines = [line.split("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    listed = {requirement.name: requirement for requirement in map(Requirement, filter(None, lines))}
    wanted = {module: listed[DISTRIBUTIONS.get(module, module)] for module in modules}
    missing = {module: str(requirement) for module, requirement in wanted.items() if not _is_there(module, requirement)}
    if not missing:
        return []
    print(f"installing {', '.join(missing.values())} ...")
    if tools := [name for name in ("setuptools", "wheel") if importlib.util.find_spec(name) is None]:
        _pip_install(tools)
    _pip_install([*missing.values()])
    importlib.invalidate_caches()
    if stale := [module for module in missing if module in sys.modules]:
        print(f"{', '.join(stale)} had been imported before: restart the kernel, then run all again")
    return [*missing.values()]


def _is_there(module: str, wanted: Requirement) -> bool:
    """Tell whether a module can be imported, in a version that will do if its distribution is known. A folder that
    merely has its name, such as a clone of a repository, is none."""
    spec = importlib.util.find_spec(module)
    version = None if wanted.name in PLATFORM_PACKAGES else installed_version(wanted.name)
    found = spec is not None and spec.origin is not None
    return found and (version is None or wanted.specifier.contains(version, prereleases=True))


def _pip_install(requirements: list[str]) -> None:
    """Install from attached wheels if they are enough, else with internet."""
    wheels = [path for folder in input_folders() for depth in ("*.whl", "*/*.whl") for path in folder.glob(depth)]
    links = [f"--find-links={folder}" for folder in sorted({path.parent for path in wheels})]
    pins = [f"{name}=={version}" for name in PLATFORM_PACKAGES if (version := installed_version(name))]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(pins) + "\n")
        options = ["--quiet", "--no-build-isolation", "--constraint", str(constraints), *links]
        for index in (["--no-index"], []) if links else ([],):
            command = [sys.executable, "-m", "pip", "install", *options, *index, *requirements]
            # sam2's compiled extension is not needed, and takes minutes to build
            environment = {"SAM2_BUILD_CUDA": "0", **os.environ}
            done = subprocess.run(command, text=True, stderr=subprocess.PIPE, env=environment)
            if done.returncode == 0:
                return
    reason = (done.stderr.strip() or "no message").splitlines()[-1]
    raise RuntimeError(
        f"{', '.join(requirements)} could not be installed ({reason}). With internet: pip install "
        f"--no-build-isolation {' '.join(requirements)}. On Kaggle without internet: turn it on under Settings, or "
        "attach an input with the wheels that `pip wheel -r requirements.txt` makes where there is internet."
    )


def is_interactive() -> bool:
    """Tell whether widgets can be shown and somebody may use them: in Jupyter, on Colab, in Kaggle's editor, but not
    where papermill, nbconvert or Kaggle's *Save & Run All* executes the notebook."""
    if importlib.util.find_spec("ipywidgets") is None:
        return False
    if where() == "kaggle":
        return os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Interactive"
    return where() == "colab" or "JPY_SESSION_NAME" in os.environ  # Jupyter's server sets it for its kernels


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution, `None` where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions(*packages: str) -> dict[str, str]:
    """Return Python's version and those of the named distributions that are installed, for a figure's caption."""
    found = {name: version for name in packages if (version := installed_version(name))}
    return {"python": platform.python_version(), **found}
