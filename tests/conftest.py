"""Settings for every test: offline, one thread, seeded, no state left behind by accelerate."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import shutil
import socket
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before any library is imported: look-ups on a hub would otherwise retry for half a minute, and
# two threads on a busy two-core machine are many times slower than one.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jaxtyping
import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "third_party_quantizer"
# An int is accepted where a signature says float, as everywhere in Python.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"


def _modules_with_shapes() -> list[str]:
    """Return the modules of this repository whose signatures carry shapes."""
    found = []
    for source in ("core", "plugins", "generation"):
        for path in sorted((ROOT / source).glob("spectok*/**/*.py")):
            if "from jaxtyping import" in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT / source).with_suffix("").parts
                found.append(".".join(parts).removesuffix(".__init__"))
    return found


# Shapes in signatures are compiled into checks here and switched on by `checked_shapes`; off, they
# cost one comparison per call. They stay off elsewhere, because they fire before our own messages.
jaxtyping.config.update("jaxtyping_disable", True)
jaxtyping.install_import_hook(_modules_with_shapes(), CHECKER)

import random  # noqa: E402
import sys  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def frozen_heap():
    """Keep what is there already out of garbage collection: accelerate collects after every run."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def without_code(monkeypatch):
    """Trace and differentiate as always, and run the graphs as they are: no C++ is compiled."""
    monkeypatch.setattr("spectok.training.compiling.BACKEND", "aot_eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def example_site(tmp_path_factory):
    """Build the example package and install it into a folder, nothing fetched from anywhere."""
    if not EXAMPLE.is_dir():
        pytest.skip("needs a checkout")
    folder = tmp_path_factory.mktemp("site-packages")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    pip += ["--no-build-isolation", "--disable-pip-version-check", "--target", str(folder)]
    subprocess.run([*pip, str(EXAMPLE)], check=True)
    return folder


@pytest.fixture(scope="session")
def on_example_path(example_site):
    """Return a context in which the example package is on the path, as in a new interpreter."""
    from spectok import plugins

    @contextlib.contextmanager
    def context():
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(example_site)
            plugins.installed.cache_clear()
            yield
        plugins.installed.cache_clear()
        for name in [name for name in sys.modules if name.startswith("spectok_product")]:
            del sys.modules[name]

    return context


@pytest.fixture
def checked_shapes():
    """Check the shapes written in spectok's signatures at every call."""
    jaxtyping.config.update("jaxtyping_disable", False)
    yield
    jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def seeded():
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries draw from the global state
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Let each test compute latents anew, and leave none in the home directory."""
    folder = tmp_path_factory.getbasetemp() / f"cache-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    monkeypatch.setenv("SPECTOK_CACHE", str(folder))


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Forget the Accelerator of a test: a second one with other settings would be refused."""
    yield
    if "accelerate.state" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


@pytest.fixture
def fork():
    """Start functions in forked processes: ``fork(function, *arguments, environment=…)``.

    A fork starts at once, where a fresh interpreter would import for many seconds.
    """
    from accelerate.state import AcceleratorState

    started = []

    def start(
        function: Callable[..., Any], *args: Any, environment: Any = (), **options: Any
    ) -> Any:
        def body() -> None:
            AcceleratorState._reset_state(reset_partial_state=True)  # the parent's is no use here
            os.environ.update(environment)
            function(*args, **options)

        process = multiprocessing.get_context("fork").Process(target=body)
        with warnings.catch_warnings():
            # Python 3.12 warns if any library started a thread; the children use one of their own.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def fork_ranks(fork: Any):
    """Run a function in two processes that form a group, as ``torchrun`` would start them."""

    def run(function: Callable[..., None], *args: Any) -> list[int]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [
            fork(function, *args, environment=group | {"RANK": rank, "LOCAL_RANK": rank})
            for rank in ("0", "1")
        ]
        for process in ranks:
            process.join(120)
        return [process.exitcode for process in ranks]

    return run
