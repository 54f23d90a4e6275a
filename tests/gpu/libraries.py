"""Where the shared libraries are that the binaries need."""

import glob
import importlib.util
import os

HERE = os.path.dirname(os.path.abspath(__file__))


def library_path():
    """Ours, then CUDA's: an installed toolkit's or the one that came with PyTorch."""
    folders = [os.path.join(HERE, "lib")]
    folders += glob.glob("/usr/local/cuda*/lib64") + glob.glob("/usr/local/cuda*/targets/*/lib")
    spec = importlib.util.find_spec("nvidia")
    for root in spec.submodule_search_locations if spec else ():
        folders += glob.glob(os.path.join(root, "*", "lib"))
    return ":".join(folders)


def environment(**extra):
    return dict(os.environ, LD_LIBRARY_PATH=library_path(), **extra)
