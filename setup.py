"""Build of the extension ``torch_helion._C``; all other metadata is in ``pyproject.toml``.

What flows in: ``csrc/``, ``CMakeLists.txt`` and the torch that is installed. What flows out: one
module beside the Python sources. CMake does the work where there is one; where there is none, the
compiler is driven directly. Neither needs CUDA or a download. Build without isolation, so that the
torch of the build is the torch that will run it:

    pip install torch==2.13.0
    pip install --no-build-isolation -e .
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = pathlib.Path(__file__).resolve().parent
SOURCES = tuple(sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/*.cpp")))
DEPENDS = ("CMakeLists.txt", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/*.h")))
LIBRARIES = ("c10", "torch_cpu", "torch_python")
MIN_CMAKE = (3, 18)
MIN_TORCH = (2, 11)


class BuildError(SystemExit):
    """Ends the build with a paragraph instead of a traceback."""

    def __init__(self, text: str) -> None:
        super().__init__("\n" + textwrap.fill(text, 98) + "\n")


def torch_root() -> pathlib.Path:
    """The folder of the installed torch."""
    try:
        import torch
    except ImportError as error:
        raise BuildError(
            "torch_helion is compiled against the torch that it will run with, and none can be "
            f"imported here ({error}). Install it first (pip install torch==2.13.0), then run "
            "pip install --no-build-isolation -e . (or without -e). Without "
            "--no-build-isolation pip builds in an empty environment, where torch is never found."
        ) from None
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < MIN_TORCH:
        wanted = ".".join(map(str, MIN_TORCH))
        raise BuildError(f"torch_helion needs torch >= {wanted}, found {torch.__version__}.")
    return pathlib.Path(torch.utils.cmake_prefix_path).parents[1]


def find_tool(name: str) -> str | None:
    """A program on PATH or among the scripts of this Python (pip's cmake and ninja wheels)."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def usable_cmake() -> str | None:
    """CMake, if it is there, new enough and has a build tool to drive."""
    cmake = find_tool("cmake")
    if cmake is None or not (find_tool("ninja") or find_tool("make") or os.name == "nt"):
        return None
    try:
        output = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"(\d+)\.(\d+)", output.stdout)
    return cmake if found and tuple(map(int, found.groups())) >= MIN_CMAKE else None


def find_compiler() -> str:
    """The C++ compiler for a build without CMake."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name
    raise BuildError(
        "No C++ compiler was found (looked for $CXX, c++, g++ and clang++). Building torch_helion "
        "from source needs one with C++20: install g++ (apt install g++, dnf install gcc-c++) or "
        "set CXX. An installed wheel needs no compiler."
    )


class BuildExtension(build_ext):
    """``build_ext`` by CMake, else by the compiler directly."""

    def build_extension(self, ext: Extension) -> None:
        target = pathlib.Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        torch = torch_root()
        cmake = usable_cmake()
        if cmake is None or not self._configure(cmake, torch, target.parent):
            self._build_directly(ext, torch)
        else:
            self._run([cmake, "--build", str(self._folder()), "--config", "Release"])
        if not target.exists():
            raise BuildError(f"The build ended without making {target}.")

    def _folder(self) -> pathlib.Path:
        # One per interpreter: kept between builds, so that a second one compiles what changed.
        return ROOT / "build" / f"cmake-{sysconfig.get_config_var('SOABI') or 'python'}"

    def _configure(self, cmake: str, torch: pathlib.Path, output: pathlib.Path) -> bool:
        """False where CMake cannot work here; the compiler may still."""
        folder = self._folder()
        arguments = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(folder),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DTORCH_PREFIX={torch}",
            f"-DTORCH_HELION_OUTPUT={output}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        ninja = find_tool("ninja")
        if ninja is not None:
            arguments += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        for _ in range(2):
            if subprocess.run(arguments, check=False).returncode == 0:
                return True
            # A folder configured for other paths refuses; an empty one may not.
            shutil.rmtree(folder, ignore_errors=True)
        print("CMake could not configure the build: driving the compiler directly", flush=True)
        return False

    def _build_directly(self, ext: Extension, torch: pathlib.Path) -> None:
        if os.name != "nt":
            compiler = find_compiler()
            os.environ.setdefault("CXX", compiler)
            executables = {
                "compiler_so_cxx": f"{compiler} -fPIC",
                "linker_so_cxx": f"{compiler} -shared",
            }
            if sys.platform == "darwin":
                executables["linker_so_cxx"] = f"{compiler} -bundle -undefined dynamic_lookup"
            self.compiler.set_executables(
                **executables,
                compiler_so=executables["compiler_so_cxx"],
                linker_so=executables["linker_so_cxx"],
            )
        ext.sources = [str(ROOT / name) for name in SOURCES]
        ext.include_dirs += [str(torch / "include"), str(torch / "include/torch/csrc/api/include")]
        ext.library_dirs.append(str(torch / "lib"))
        ext.libraries += LIBRARIES
        if os.name == "nt":
            ext.extra_compile_args += ["/std:c++20", "/O2", "/EHsc"]
        else:
            ext.extra_compile_args += ["-std=c++20", "-O2", "-DNDEBUG", "-fvisibility=hidden"]
        super().build_extension(ext)

    def _run(self, command: list[str]) -> None:
        if subprocess.run(command, check=False).returncode != 0:
            raise BuildError("Compiling torch_helion._C failed; the compiler's errors are above.")


setup(
    ext_modules=[
        Extension("torch_helion._C", sources=list(SOURCES), depends=list(DEPENDS), language="c++")
    ],
    cmdclass={"build_ext": BuildExtension},
)
