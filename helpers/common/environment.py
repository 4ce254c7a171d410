"""Where the notebook runs, where its files lie there, and what is installed."""

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
DISTRIBUTIONS = {"cv2": "opencv-python", "PIL": "pillow", "groundingdino": "groundingdino-py"}  # of other names
KAGGLE_INPUT = Path("/kaggle/input")


def where() -> str:
    """Return `"kaggle"`, `"colab"` or `"local"`; Kaggle's image is built from Colab's and may have its variables."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ or "KAGGLE_URL_BASE" in os.environ:
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ or "COLAB_GPU" in os.environ else "local"


def default_out_dir() -> Path:
    """Return the folder for what a run writes: on Kaggle the one that survives the session."""
    return Path({"kaggle": "/kaggle/working/outputs", "colab": "/content/outputs", "local": "outputs"}[where()])


def input_folders() -> list[Path]:
    """Return the folders that may hold the user's files, best first: attached Kaggle inputs, `cifar-10` before others
    (mounted as `<name>` or, since 2025, as `<kind>/<owner>/<name>`), then `./data`."""
    found = [path for depth in ("*", "*/*/*") for path in sorted(KAGGLE_INPUT.glob(depth)) if path.is_dir()]
    found.sort(key=lambda path: path != KAGGLE_INPUT / "cifar-10")
    return [*(found if where() == "kaggle" else []), Path("data")]


def ensure_packages(*modules: str) -> list[str]:
    """Install the packages of the modules that cannot be found or are too old by requirements.txt, and nothing else.

    Wheels in attached Kaggle inputs (`pip wheel -r requirements.txt` makes them) are tried first, without internet.
    Returns the requirements that were installed; raises `RuntimeError` with the command to run where pip fails.
    """
    lines = [line.split("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines()]
    listed = {requirement.name: requirement for requirement in map(Requirement, filter(None, lines))}
    wanted = {module: listed[DISTRIBUTIONS.get(module, module)] for module in modules}
    missing = {module: str(requirement) for module, requirement in wanted.items() if not _is_there(module, requirement)}
    if missing:
        print(f"installing {', '.join(missing.values())} ...")
        if tools := [name for name in ("setuptools", "wheel") if importlib.util.find_spec(name) is None]:
            _pip_install(tools)
        _pip_install([*missing.values()])
        importlib.invalidate_caches()
    if stale := [module for module in missing if module in sys.modules]:
        print(f"{', '.join(stale)} had been imported before: restart the kernel, then run all again")
    return [*missing.values()]


def _is_there(module: str, wanted: Requirement) -> bool:
    """Tell whether a module can be imported, in a version that will do."""
    spec = importlib.util.find_spec(module)
    version = None if wanted.name in PLATFORM_PACKAGES else installed_version(wanted.name)
    found = spec and spec.origin  # a mere folder of that name, such as a clone of a repository, has no origin
    return bool(found) and (version is None or wanted.specifier.contains(version, prereleases=True))


def _pip_install(requirements: list[str]) -> None:
    """Install from attached wheels if they are enough, else with internet. What the platform brought is pinned, and
    used for builds: sam2's asks for torch, of which pip would otherwise fetch another one with its CUDA libraries."""
    wheels = [path for folder in input_folders() for depth in ("*.whl", "*/*.whl") for path in folder.glob(depth)]
    links = [f"--find-links={folder}" for folder in sorted({path.parent for path in wheels})]
    pins = [f"{name}=={version}" for name in PLATFORM_PACKAGES if (version := installed_version(name))]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(pins))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "-c", constraints, *links]
        # sam2's compiled extension is not needed, and takes minutes to build
        environment = {"SAM2_BUILD_CUDA": "0", **os.environ}
        for index in (["--no-index"], []) if links else ([],):
            done = subprocess.run([*command, *index, *requirements], text=True, stderr=subprocess.PIPE, env=environment)
            if done.returncode == 0:
                return
    reason = (done.stderr.strip() or "no message").splitlines()[-1]
    raise RuntimeError(
        f"{', '.join(requirements)} could not be installed ({reason}). With internet: pip install --no-build-isolation "
        f"{' '.join(requirements)}. On Kaggle without internet: turn it on under Settings, or attach an input with the "
        "wheels that `pip wheel -r requirements.txt` makes where there is internet."
    )


def is_interactive() -> bool:
    """Tell whether somebody may use widgets: not where papermill, nbconvert or Kaggle's *Save & Run All* runs this."""
    jupyter = "JPY_SESSION_NAME" in os.environ  # set by Jupyter's server for its kernels
    kaggle = os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Interactive"
    watched = {"kaggle": kaggle, "colab": True, "local": jupyter}[where()]
    return watched and importlib.util.find_spec("ipywidgets") is not None


def hides_bars() -> bool:
    """Tell whether progress bars are unwanted, by tqdm's own variable, which its bars in notebooks do not heed."""
    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution, `None` where it is not installed."""
    return next((found.version for found in importlib.metadata.distributions(name=package)), None)


def versions(*packages: str) -> dict[str, str]:
    """Return Python's version and those of the named distributions that are installed, for a figure's caption."""
    found = {name: version for name in packages if (version := installed_version(name))}
    return {"python": platform.python_version(), **found}
