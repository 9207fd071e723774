"""Compiled programs are kept in a folder, so that the next process does not compile them again.

JAX has such a cache. What this module adds: a folder for each kind of machine and each version, that only its user can
read and write (what lies there is executed), bounded in size, and from which damaged programs are taken out before
JAX reads them. Each entry must have the digest that the process which wrote it left in `DIGESTS` when it ended. Where
the folder cannot be used, programs are compiled as if there were no cache.
"""

import atexit
import hashlib
import importlib.util
import json
import os
import platform
import stat
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

from ntk_analysis.common.files import write_whole

VARIABLE = "NTK_ANALYSIS_CACHE"
DIGESTS = "digests.json"
LARGEST = 256 * 2**20
"""Bytes in the cache; beyond this, the oldest files are deleted at the next start."""


def use(folder: Path | str | None = None) -> Path | None:
    """Keeps compiled programs in a folder, for this process and those that it starts; call it before JAX compiles.

    A cache that was chosen with JAX's own settings is left as it is.

    Args:
        folder: folder with the caches of all machines and versions; by default the one that the environment variable
            NTK_ANALYSIS_CACHE names, else "compiled" in the user's cache folder. "off" keeps nothing.

    Returns:
        The folder that is used, for this machine and these versions; None if nothing is kept because the cache is off,
        JAX has another one, or the folder cannot be written or can be written by others.
    """
    wanted = folder or os.environ.get(VARIABLE) or _user_folder()
    if wanted == "off" or _jax_has_one():
        return None
    everything = Path(wanted).expanduser()
    private = _private_folder(everything / _machine_and_versions())
    if private is None:
        return None
    programs = private / "programs"
    try:
        programs.mkdir(exist_ok=True)
        _keep_newest(everything)
        _keep_whole_entries(programs)
    except OSError:  # or another process deleted it first
        return None
    atexit.register(_write_digests, programs)
    _tell_jax(programs)
    _keep_bytecode(private / "bytecode")
    return private


def _user_folder() -> Path:
    import pooch

    return Path(pooch.os_cache("ntk_analysis")) / "compiled"


def _jax_has_one() -> bool:
    if "jax" in sys.modules:
        import jax

        return bool(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]
    return bool(os.environ.get("JAX_COMPILATION_CACHE_DIR"))


def _machine_and_versions() -> str:
    """Name for all that a compiled program depends on, besides its source and XLA's flags, which JAX looks at."""
    versions = [f"{name} {version(name)}" for name in ("jax", "jaxlib", "ntk-analysis")]
    described = [platform.python_version(), platform.machine(), platform.processor(), _processor_features(), *versions]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]


def _processor_features() -> str:
    """The instructions that this processor knows: several kinds of machine can share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _private_folder(folder: Path) -> Path | None:
    """The folder, made if it is missing; None unless it is the user's own and closed to all others."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat(follow_symlinks=False)
    except OSError:
        return None
    theirs = hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    return None if theirs or not stat.S_ISDIR(found.st_mode) or not os.access(folder, os.W_OK | os.X_OK) else folder


def _keep_whole_entries(programs: Path) -> None:
    """Deletes entries that do not have the digest with which they were written."""
    digests = _read_digests(programs)
    for path in _entries(programs):
        if digests.get(path.name) != _digest(path):
            path.unlink(missing_ok=True)


def _keep_newest(folder: Path) -> None:
    """Deletes the oldest files, of all machines and versions, beyond `LARGEST` bytes."""
    files = [
        (found.st_mtime, found.st_size, path)
        for path in folder.rglob("*")
        if stat.S_ISREG((found := path.lstat()).st_mode)
    ]
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > LARGEST:
            path.unlink(missing_ok=True)


def _write_digests(programs: Path) -> None:
    """Writes down the digest of each new entry; digests of older entries stay as they are."""
    try:
        known = _read_digests(programs)
        found = {path.name: known.get(path.name) or _digest(path) for path in _entries(programs)}
        text = json.dumps(found)
        write_whole(programs / DIGESTS, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError:  # the disk is full, or the folder is gone: the next start compiles again
        pass


def _entries(programs: Path) -> list[Path]:
    return [path for path in programs.iterdir() if path.is_file() and path.name != DIGESTS]


def _read_digests(programs: Path) -> dict[str, str]:
    try:
        found = json.loads((programs / DIGESTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _tell_jax(programs: Path) -> None:
    """Tells JAX by the environment, which needs no import and reaches child processes, and by its configuration."""
    settings: dict[str, str | float] = {
        "jax_compilation_cache_dir": str(programs),
        "jax_persistent_cache_min_compile_time_secs": 0.0,  # our programs are many, and small
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    os.environ.update({name.upper(): str(value) for name, value in settings.items()})
    if "jax" in sys.modules:
        import jax

        for name, value in settings.items():
            jax.config.update(name, value)
    # a full disk, or an entry that was deleted meanwhile: it costs time, and nothing can be done about it
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")


def _keep_bytecode(folder: Path) -> None:
    """Makes Python keep its bytecode in `folder` if it keeps none beside the modules: that is half of a start."""
    jax = importlib.util.find_spec("jax")
    if jax is None or jax.cached is None or not sys.dont_write_bytecode or Path(jax.cached).exists():
        return
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(folder)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
