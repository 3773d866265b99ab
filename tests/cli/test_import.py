import subprocess
import sys


def test_importing_mmalign_loads_nothing_heavy() -> None:
    heavy = "torch", "transformers", "matplotlib", "pyarrow", "PIL", "numpy", "jsonargparse"
    code = f"import sys, mmalign; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


def test_every_public_name_is_there() -> None:
    import mmalign

    for name in mmalign.__all__:
        assert getattr(mmalign, name) is not None
