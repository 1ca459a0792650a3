"""Is every compiled op that MMDetection and MMSegmentation use served? By their own source, and mmcv's."""

from collections.abc import Iterable

import pytest
from op_use import compiled_functions, used_ops

from dense.compat import extension

extension.install()

from dense.compat import ops  # noqa: E402

PACKAGES = ('mmdet', 'mmseg')
REPLACED = [(module, name) for module, name, _ in (*ops.FUNCTIONS, *ops.APPLY)]
# What an op calls when nothing takes its place, branches for other devices included.
KNOWN = {
    'CARAFEPack': {'carafe_forward', 'carafe_backward'},
    'PSAMask': {'psamask_forward', 'psamask_backward'},
    'MaskedConv2d': {'masked_im2col_forward', 'masked_col2im_forward'},
    'ModulatedDeformConv2dPack': {'modulated_deform_conv_forward', 'modulated_deform_conv_backward'},
    'SAConv2d': {
        'deform_conv_forward',
        'deform_conv_backward_input',
        'deform_conv_backward_parameters',
        'modulated_deform_conv_forward',
        'modulated_deform_conv_backward',
    },
    'nms_match': {'nms_match'},
    'soft_nms': {'softnms'},
    'nms_rotated': {'nms_rotated'},
    'point_sample': set(),
    'CornerPool': set(),
}
UNSERVED = ['nms_rotated', 'box_iou_rotated', 'upfirdn2d', 'Voxelization', 'RoIAlignRotated', 'BorderAlign']


def unserved(names: Iterable[str]) -> dict[str, set[str]]:
    """Return which ops reach compiled functions that nobody serves, and these functions."""
    missing = {name: compiled_functions(name, REPLACED) - ops.KERNELS.keys() for name in names}
    return {name: functions for name, functions in missing.items() if functions}


@pytest.mark.parametrize('package', PACKAGES)
def test_every_imported_op_is_served(package: str) -> None:
    names = used_ops(package)[0]
    assert {'sigmoid_focal_loss', 'point_sample'} <= names
    assert unserved(names) == {}


@pytest.mark.parametrize('package', PACKAGES)
def test_every_op_of_the_configs_is_served(package: str) -> None:
    names = used_ops(package)[1]
    assert package == 'mmseg' or {'RoIAlign', 'ModulatedDeformConv2dPack', 'CARAFEPack', 'SyncBatchNorm'} <= names
    assert unserved(names) == {}


def test_an_op_that_loses_its_functions_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set().union(*(kind for package in PACKAGES for kind in used_ops(package)))
    compiled = {name: compiled_functions(name) for name in names}
    monkeypatch.setitem(globals(), 'REPLACED', [])
    for name in names:
        kept = {key: value for key, value in ops.KERNELS.items() if key not in compiled[name]}
        monkeypatch.setattr(ops, 'KERNELS', kept)
        assert unserved({name}) == ({name: compiled[name]} if compiled[name] else {})
    assert sum(bool(functions) for functions in compiled.values()) >= 18


@pytest.mark.parametrize('name', UNSERVED)
def test_an_op_that_is_not_served_is_noticed(name: str) -> None:
    assert unserved({name, 'nms'}).keys() == {name}


@pytest.mark.parametrize('name', KNOWN)
def test_what_an_op_calls_is_read_from_its_source(name: str) -> None:
    assert compiled_functions(name) == KNOWN[name]
