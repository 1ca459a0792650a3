"""Is mmcv._ext served where no compiled one is installed, and only there?"""

import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dense.compat import extension

extension.install()

import mmcv  # noqa: E402
import mmcv.ops  # noqa: E402
import torch  # noqa: E402

UNSERVED = ['nms_rotated', 'box_iou_rotated', 'upfirdn2d', 'bezier_align_forward', 'ball_query_forward']


# `import dense` imports mmcv and torch; this loads the file alone.
ALONE = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location('extension', {extension.__file__!r})
extension = importlib.util.module_from_spec(spec)
spec.loader.exec_module(extension)
extension.install()
"""


def run(code: str) -> list[str]:
    """Run code in a fresh interpreter and return the words that it printed."""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def write_fake_mmcv(folder: Path, compiled: bool) -> None:
    """Write a package ``mmcv`` whose ``ops`` has one function, with or without an extension module of its own."""
    ops = folder / 'mmcv' / 'ops'
    ops.mkdir(parents=True)
    (folder / 'mmcv' / '__init__.py').write_text('')
    (ops / '__init__.py').write_text('import mmcv._ext as e\nkernel = e.nms\ndef roi_align():\n    return "mmcv"\n')
    if compiled:
        (folder / 'mmcv' / '_ext.py').write_text('def nms():\n    return "compiled"\n')


def test_every_function_that_mmcv_asks_for_is_there() -> None:
    asked = set()
    for module in pkgutil.iter_modules(mmcv.ops.__path__):
        loaded = importlib.import_module(f'mmcv.ops.{module.name}')
        if hasattr(loaded, 'ext_module'):
            asked.add(module.name)
            assert loaded.ext_module is sys.modules['mmcv._ext']
    assert len(asked) >= 50


def test_the_module_has_a_real_spec() -> None:
    spec = importlib.util.find_spec('mmcv._ext')
    assert spec is not None and spec.name == 'mmcv._ext' and spec.loader is not None
    assert sys.modules['mmcv._ext'].__spec__ is spec
    assert not hasattr(sys.modules['mmcv._ext'], '__path__')
    assert inspect.getmodule(mmcv.ops.roi_align).__name__ == 'dense.compat.ops.roi'
    assert 'RoIAlign' in inspect.getsource(mmcv.ops.RoIAlign)


@pytest.mark.parametrize('name', UNSERVED)
def test_an_unserved_function_names_itself_and_the_remedy(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"'{name}'(.|\n)*full mmcv built for torch {torch.__version__[:4]}"):
        getattr(sys.modules['mmcv._ext'], name)()


def test_a_model_that_needs_an_unserved_op_gets_that_error() -> None:
    with pytest.raises(NotImplementedError, match='border_align_forward'):
        mmcv.ops.BorderAlign(2)(torch.zeros(1, 4, 3, 3), torch.zeros(1, 9, 4))


def test_installing_again_changes_nothing() -> None:
    before, function = list(sys.meta_path), mmcv.ops.roi_align
    extension.install()
    assert sys.meta_path == before and mmcv.ops.roi_align is function


def test_what_is_served_is_told() -> None:
    ops = extension.served_ops()
    assert extension.origin() == 'torchvision'
    assert ops['nms'] == 'torchvision.ops.nms'
    ops.clear()
    assert extension.served_ops()


@pytest.mark.parametrize('op', extension.served_ops())
def test_every_served_op_has_a_suite(op: str) -> None:
    name = op.split(' ')[0]  # without the mode
    suites = [path.read_text() for path in Path(__file__).parent.glob('test_ops_*.py') if path != Path(__file__)]
    assert any(re.search(rf'\b{name}', suite) for suite in suites)


def test_mmcv_reports_its_environment() -> None:
    from mmcv.ops import get_compiler_version, get_compiling_cuda_version

    assert 'torchvision' in get_compiler_version() and get_compiling_cuda_version()


def test_a_compiled_extension_wins(tmp_path: Path) -> None:
    write_fake_mmcv(tmp_path, compiled=True)
    code = ALONE + (
        f'sys.path.insert(0, {str(tmp_path)!r})\n'
        'print(extension.origin())\n'
        'import mmcv.ops\n'
        'print(mmcv.ops.kernel(), mmcv.ops.roi_align(), extension.origin())\n'
    )
    assert run(code) == ['compiled', 'compiled', 'mmcv', 'compiled']


def test_a_compiled_extension_of_the_real_mmcv_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / '_ext.py').write_text('def __getattr__(name):\n    return lambda *args, **kwargs: name\n')
    code = (
        'import mmcv\n'
        f'mmcv.__path__.append({str(tmp_path)!r})\n'
        'import dense\n'
        'from dense.compat import extension\n'
        'import mmcv.ops\n'
        'print(extension.origin(), mmcv.ops.roi_align.__self__.__module__, mmcv.ops.get_compiler_version())\n'
    )
    assert run(code)[-3:] == ['compiled', 'mmcv.ops.roi_align', 'get_compiler_version']


def test_a_compiled_extension_known_to_a_later_finder_wins(tmp_path: Path) -> None:
    write_fake_mmcv(tmp_path, compiled=True)
    spec = extension._ExtensionFinder().find_spec('mmcv._ext', [str(tmp_path / 'mmcv')])
    assert spec is not None and spec.origin == str(tmp_path / 'mmcv' / '_ext.py')


def test_without_mmcv_installing_does_no_harm() -> None:
    code = ALONE + (
        'class Hide:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        '        if name == "mmcv":\n'
        '            raise ModuleNotFoundError("hidden", name="mmcv")\n'
        'sys.meta_path.insert(0, Hide())\n'
        'try:\n'
        '    import mmcv.ops\n'
        'except ModuleNotFoundError as error:\n'
        '    print(error.name)\n'
    )
    assert run(code) == ['mmcv']


def test_installing_imports_neither_torch_nor_mmcv() -> None:
    code = ALONE + 'print([name for name in ("torch", "mmcv") if name in sys.modules], extension.origin())'
    assert run(code) == ['[]', 'torchvision']


def test_detectors_bind_the_served_functions() -> None:
    masks = importlib.import_module('mmdet.structures.mask.structures')
    bbox_nms = importlib.import_module('mmdet.models.layers.bbox_nms')
    losses = [importlib.import_module(f'{name}.models.losses.focal_loss') for name in ('mmdet', 'mmseg')]
    assert masks.roi_align.__module__ == 'dense.compat.ops.roi'
    assert bbox_nms.batched_nms is mmcv.ops.batched_nms and bbox_nms.batched_nms.__module__ == 'mmcv.ops.nms'
    assert {loss._sigmoid_focal_loss.__module__ for loss in losses} == {'dense.compat.ops.focal'}
